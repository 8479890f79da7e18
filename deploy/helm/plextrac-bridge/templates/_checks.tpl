{{/* What a schema cannot say. All of it is wrong whatever the cluster. */}}

{{- define "plextrac-bridge.checks" -}}
{{- $settings := .Values.settings -}}
{{- if ne (len $settings.broker) 1 -}}
{{- fail (printf "settings.broker names %d brokers; name exactly one, such as\n\n  settings:\n    broker:\n      kafka:\n        bootstrap_servers: kafka.example.com:9092\n\nor rabbitmq, or nats" (len $settings.broker)) -}}
{{- end -}}
{{- if not $settings.sources -}}
{{- fail "settings.sources names no source; name one, such as\n\n  settings:\n    sources:\n      plextrac: {}" -}}
{{- end -}}
{{- if and (contains (printf "%s/" (include "plextrac-bridge.secretsDirectory" .)) (include "plextrac-bridge.settings" .)) (not .Values.existingSecret) -}}
{{- fail (printf "existingSecret is not set, but the settings take files from it; make one and name it:\n\n  kubectl create secret generic plextrac-bridge --from-literal=%s=\"$(openssl rand -hex 32)\"" (keys $settings.sources | sortAlpha | first)) -}}
{{- end -}}
{{- if and (eq (default "buffered" $settings.ack) "journaled") (not $settings.state_directory) -}}
{{- fail "settings.ack is \"journaled\", which needs settings.state_directory for its journal" -}}
{{- end -}}
{{- range $part := list "ingress" "admin" -}}
{{- $address := get (get $settings $part) "listen" -}}
{{- if regexMatch "^ *(127[.]|[[][0:]*:0*1[]]|[[][0:]*:(ffff|FFFF):(127[.]|7[fF]))" $address -}}
{{- fail (printf "settings.%s.listen is a loopback address, %s, which nothing outside the pod reaches; listen on 0.0.0.0 or [::]" $part $address) -}}
{{- end -}}
{{- end -}}
{{- $paths := dict -}}
{{- range $name, $source := $settings.sources -}}
{{- $path := default "/webhooks/plextrac" $source.path -}}
{{- if hasKey $paths $path -}}
{{- fail (printf "settings.sources.%s and settings.sources.%s answer the same path, %s; give each its own `path`" (get $paths $path) $name $path) -}}
{{- end -}}
{{- $_ := set $paths $path $name -}}
{{- end -}}
{{- if eq (include "plextrac-bridge.port" $settings.ingress.listen) (include "plextrac-bridge.port" $settings.admin.listen) -}}
{{- fail "settings.ingress.listen and settings.admin.listen have the same port; the admin port needs its own" -}}
{{- end -}}
{{- if $settings.state_directory -}}
{{- $needed := include "plextrac-bridge.stateBytes" . | int64 -}}
{{- if lt (include "plextrac-bridge.bytes" .Values.persistence.size | int64) $needed -}}
{{- fail (printf "persistence.size is %s, but journal, dead letters and invalid bodies may take %d MiB; raise it, or lower their limits in settings" .Values.persistence.size (div (add $needed 1048575) 1048576)) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.ingress.enabled (not .Values.ingress.host) -}}
{{- fail "ingress.host is not set: the name that PlexTrac's webhook form will have, such as hooks.example.com" -}}
{{- end -}}
{{- end -}}
