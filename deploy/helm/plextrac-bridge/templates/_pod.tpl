{{/* What the bridge and the test of its connection share of a pod. */}}

{{- define "plextrac-bridge.podSpec" -}}
serviceAccountName: {{ include "plextrac-bridge.serviceAccountName" . }}
automountServiceAccountToken: false
# The bridge takes no notice of the variables of services, and needs none.
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "plextrac-bridge.container" -}}
image: {{ include "plextrac-bridge.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  {{- toYaml .Values.securityContext | nindent 2 }}
env:
  # Empty counts as absent: the file of settings alone decides, not what the image sets.
  - name: PLEXTRAC_BRIDGE_DEFAULTS
    value: ""
  {{- with .Values.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
volumeMounts:
  - name: config
    mountPath: /etc/plextrac-bridge
    readOnly: true
  {{- if .Values.existingSecret }}
  - name: secrets
    mountPath: {{ include "plextrac-bridge.secretsDirectory" . }}
    readOnly: true
  {{- end }}
  {{- with .Values.settings.state_directory }}
  - name: state
    mountPath: {{ . }}
  {{- end }}
  {{- with .Values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* All but the state: whole directories, so that a changed Secret shows in the running pod. */}}
{{- define "plextrac-bridge.volumes" -}}
- name: config
  configMap:
    name: {{ include "plextrac-bridge.fullname" . }}
{{- with .Values.existingSecret }}
- name: secrets
  secret:
    secretName: {{ . }}
    # fsGroup makes it the bridge's own group.
    defaultMode: 0440
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}
