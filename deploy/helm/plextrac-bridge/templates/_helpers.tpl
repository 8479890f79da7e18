{{/* Names, labels, and what is computed from the settings. */}}

{{- define "plextrac-bridge.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "plextrac-bridge.selectorLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "plextrac-bridge.labels" -}}
{{ include "plextrac-bridge.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{- define "plextrac-bridge.serviceAccountName" -}}
{{- default (ternary (include "plextrac-bridge.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name -}}
{{- end -}}

{{- define "plextrac-bridge.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{- printf "%s@%s" .repository .digest -}}
{{- else -}}
{{- printf "%s:%s" .repository (default $.Chart.AppVersion .tag) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The port of an address such as 0.0.0.0:8080. */}}
{{- define "plextrac-bridge.port" -}}
{{- regexFind "[0-9]+$" . -}}
{{- end -}}

{{/* A duration of the settings in milliseconds. */}}
{{- define "plextrac-bridge.milliseconds" -}}
{{- $unit := regexFind "[a-z]+$" . -}}
{{- mul (regexFind "^[0-9]+" . | int64) (get (dict "ms" 1 "s" 1000 "m" 60000 "h" 3600000) $unit) -}}
{{- end -}}

{{/* A size of the settings (1GiB) or a quantity (1Gi, 1G) in bytes. */}}
{{- define "plextrac-bridge.bytes" -}}
{{- $factors := dict "" 1 "B" 1 "KiB" 1024 "MiB" 1048576 "GiB" 1073741824
      "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776
      "k" 1000 "M" 1000000 "G" 1000000000 "T" 1000000000000 -}}
{{- mul (regexFind "^[0-9]+" . | int64) (get $factors (regexFind "[A-Za-z]*$" .)) -}}
{{- end -}}

{{/* What the state directory can grow to: the journal, which in an outage keeps what several stops wrote; letters of both kinds. */}}
{{- define "plextrac-bridge.stateBytes" -}}
{{- $settings := .Values.settings -}}
{{- $events := include "plextrac-bridge.bytes" (dig "journal" "max_bytes" "1GiB" $settings) -}}
{{- $letters := include "plextrac-bridge.bytes" (dig "dead_letters" "max_bytes" "256MiB" $settings) -}}
{{- $invalid := include "plextrac-bridge.bytes" (dig "invalid" "max_bytes" "64MiB" $settings) -}}
{{- add $events $letters $invalid -}}
{{- end -}}

{{/* What a stop does not deliver is in the volume, where there is one. */}}
{{- define "plextrac-bridge.grace" -}}
{{- dig "shutdown" "grace" (empty .Values.settings.state_directory | ternary "20s" "2s") .Values.settings -}}
{{- end -}}

{{/* shutdown.delay + shutdown.grace + 10 s, rounded up. */}}
{{- define "plextrac-bridge.terminationGracePeriodSeconds" -}}
{{- $delay := include "plextrac-bridge.milliseconds" (dig "shutdown" "delay" "0s" .Values.settings) -}}
{{- $grace := include "plextrac-bridge.milliseconds" (include "plextrac-bridge.grace" .) -}}
{{- add (div (add $delay $grace 999) 1000) 10 -}}
{{- end -}}

{{/* The broker's ports, comma-separated: those it is named with, else its usual ones. */}}
{{- define "plextrac-bridge.brokerPorts" -}}
{{- $broker := .Values.settings.broker -}}
{{- $ports := list -}}
{{- with $broker.kafka -}}
{{- range splitList "," (default "localhost:9092" .bootstrap_servers) -}}
{{- $ports = append $ports (default "9092" (regexFind "[0-9]+$" (regexFind ":[0-9]+$" (trim .)))) -}}
{{- end -}}
{{- end -}}
{{- with $broker.nats -}}
{{- range .servers | default (list "nats://localhost:4222") -}}
{{- $ports = append $ports (default "4222" (regexFind "[0-9]+$" (regexFind ":[0-9]+$" (trimSuffix "/" .)))) -}}
{{- end -}}
{{- end -}}
{{- with $broker.rabbitmq -}}
{{- $uris := .uris | default list -}}
{{- with .uri -}}
{{- $uris = append $uris . -}}
{{- end -}}
{{- range $uris -}}
{{- $host := regexFind "^amqps?://([[][^]]*[]]|[^/?:]*)" . -}}
{{- $port := trimPrefix $host . | regexFind "^:[0-9]+" | trimPrefix ":" -}}
{{- $ports = append $ports (default (ternary "5671" "5672" (hasPrefix "amqps:" .)) $port) -}}
{{- else -}}
{{- $ports = list "5671" "5672" -}}
{{- end -}}
{{- end -}}
{{- join "," (uniq $ports) -}}
{{- end -}}

{{/* The port of the OAuth token endpoint; empty without one. */}}
{{- define "plextrac-bridge.tokenPort" -}}
{{- range .Values.settings.broker -}}
{{- with .oauth_token_endpoint -}}
{{- $host := regexFind "^https?://([[][^]]*[]]|[^/?:]*)" . -}}
{{- $port := trimPrefix $host . | regexFind "^:[0-9]+" | trimPrefix ":" -}}
{{- default (ternary "80" "443" (hasPrefix "http:" .)) $port -}}
{{- end -}}
{{- end -}}
{{- end -}}
