{{/* The file of settings: `.Values.settings` as TOML, with what the chart fills in. */}}

{{- define "plextrac-bridge.secretsDirectory" -}}/run/secrets/plextrac-bridge{{- end -}}

{{- define "plextrac-bridge.settings" -}}
{{- $settings := deepCopy .Values.settings -}}
{{- range $name, $source := $settings.sources -}}
{{- if not (or $source.secret_file $source.secrets $source.unsigned) -}}
{{- $_ := set $source "secret_file" $name -}}
{{- end -}}
{{- end -}}
{{- range $name, $broker := $settings.broker -}}
{{- $_ := set $broker "topology" (default "check" $broker.topology) -}}
{{- end -}}
{{- $_ := set $settings "shutdown" (set ($settings.shutdown | default dict) "grace" (include "plextrac-bridge.grace" .)) -}}
{{- include "plextrac-bridge.table" (dict "path" "" "table" $settings) -}}
{{- end -}}

{{/* A table: its keys, then the tables in it. A setting that is null is left to the bridge's default. */}}
{{- define "plextrac-bridge.table" -}}
{{- $path := .path -}}
{{- $lines := list -}}
{{- $tables := dict -}}
{{- range $key, $value := .table -}}
{{- if kindIs "map" $value -}}
{{- $_ := set $tables $key $value -}}
{{- else if not (kindIs "invalid" $value) -}}
{{- $lines = append $lines (printf "%s = %s\n" (include "plextrac-bridge.key" $key) (include "plextrac-bridge.value" (dict "key" $key "value" $value))) -}}
{{- end -}}
{{- end -}}
{{- if and $path (or $lines (not $tables)) -}}
{{- printf "\n[%s]\n" $path -}}
{{- end -}}
{{- join "" $lines -}}
{{- range $key, $value := $tables -}}
{{- $below := include "plextrac-bridge.key" $key -}}
{{- include "plextrac-bridge.table" (dict "path" (ternary (printf "%s.%s" $path $below) $below (ne $path "")) "table" $value) -}}
{{- end -}}
{{- end -}}

{{- define "plextrac-bridge.key" -}}
{{- if regexMatch "^[A-Za-z0-9_-]+$" . -}}{{ . }}{{- else -}}{{ toRawJson . }}{{- end -}}
{{- end -}}

{{/* A value. A JSON text is a TOML text too; numbers of values.yaml are floats, which the bridge does not take. */}}
{{- define "plextrac-bridge.value" -}}
{{- $value := .value -}}
{{- if kindIs "slice" $value -}}
{{- $parts := list -}}
{{- range $value -}}
{{- $parts = append $parts (include "plextrac-bridge.value" (dict "key" "" "value" .)) -}}
{{- end -}}
{{- printf "[%s]" (join ", " $parts) -}}
{{- else if kindIs "map" $value -}}
{{- $parts := list -}}
{{- range $key, $below := $value -}}
{{- $parts = append $parts (printf "%s = %s" (include "plextrac-bridge.key" $key) (include "plextrac-bridge.value" (dict "key" $key "value" $below))) -}}
{{- end -}}
{{- printf "{ %s }" (join ", " $parts) -}}
{{- else if kindIs "string" $value -}}
{{- if and $value (regexMatch "^(.*_)?file$" .key) (not (hasPrefix "/" $value)) -}}
{{- $value = printf "%s/%s" (include "plextrac-bridge.secretsDirectory" .) $value -}}
{{- end -}}
{{- toRawJson $value -}}
{{- else if kindIs "bool" $value -}}
{{- $value -}}
{{- else -}}
{{- int64 $value -}}
{{- end -}}
{{- end -}}
