#!/usr/bin/env bash
# Checks deploy/helm/plextrac-bridge by Helm itself, with each file of values in its ci/: lint, templates, the schema of
# values, and what is rendered, by kubernetes-validate and manifests.py. The tools come from setup.sh.
#
#   check.sh             all of it without the program
#   check.sh BINARY      that the program accepts the rendered settings, no more
set -euo pipefail
tests=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$tests/.."
cache=${XDG_CACHE_HOME:-$HOME/.cache}/plextrac-bridge
PATH=${VENV:-$cache/venv}/bin:${HELM_DIST:-$cache/helm}:$PATH
export BROKERS_DIST=${BROKERS_DIST:-${BROKERS_HOME:-$cache/brokers}/dist} # its certificates stand for the pods'
# shellcheck source=tests/checks.sh
. "$tests/checks.sh"
# None of this user's repositories, plugins and caches.
export HELM_CONFIG_HOME=$temporary/config HELM_CACHE_HOME=$temporary/cache HELM_DATA_HOME=$temporary/data
unset KUBECONFIG

chart=deploy/helm/plextrac-bridge
oldest=$(sed -n 's/^kubeVersion: ">=\([0-9]*\.[0-9]*\)\..*/\1/p' "$chart/Chart.yaml")
newest=$(kubernetes-validate --version | grep -oE '[0-9]+\.[0-9]+' | head -n 1)

lint() { helm lint --strict --kube-version "$newest.0" "$chart" "$@"; }
template() { helm template release "$chart" --namespace hooks --kube-version "$newest.0" "$@"; }
template_to() { template "${@:2}" >"$1"; } # FILE ARGUMENT...
manifests() { python tests/chart/manifests.py "$@"; }

# Alerts and dashboard exist once in the repository: the chart has links to them, and its package the files themselves.
packed() {
    local in=$temporary/packed name original
    helm package --destination "$in" "$chart" && tar --warning=no-timestamp -C "$in" -xf "$in"/*.tgz || return 1
    while read -r name original; do
        [ -L "$chart/files/$name" ] || { echo "files/$name is no link" && return 1; }
        [ ! -L "$in/plextrac-bridge/files/$name" ] || { echo "files/$name is a link in the package, too" && return 1; }
        cmp "$original" "$in/plextrac-bridge/files/$name" || return 1
    done <<'END'
alerts.yml deploy/prometheus/alerts.yml
silence.yml deploy/prometheus/silence.yml
dashboard.json deploy/grafana/dashboards/plextrac-bridge.json
END
}

# Kinds of the Prometheus operator have no schema there; no other may be unknown.
valid() { # VERSION FILE
    kubernetes-validate --strict -k "$1" "$2" >"$temporary/validate" 2>&1 || { cat "$temporary/validate" && return 1; }
    ! grep -F WARN "$temporary/validate" | grep -vF 'api version monitoring.coreos.com/v1 '
}

# What is wrong is refused with these words.
refused() { # WORDS COMMAND...
    local words=$1
    shift
    if "$@" >"$temporary/refused" 2>&1; then
        echo "accepted: $*"
        return 1
    fi
    grep -F -- "$words" "$temporary/refused" >/dev/null || { cat "$temporary/refused" && return 1; }
}
minimal=$chart/ci/kafka-values.yaml
typo() { # WORDS ARGUMENT...: by lint and by template
    local words=$1
    shift
    refused "$words" lint -f "$minimal" "$@" && refused "$words" template -f "$minimal" "$@"
}
schema_catches_typos() {
    typo "additional properties 'replica' not allowed" --set replica=1 &&
        typo "'/replicas': got string" --set-string replicas=1 &&
        typo "additional properties 'maxbody' not allowed" --set settings.ingress.maxbody=1MiB &&
        typo "additional properties 'kafak' not allowed" --set settings.broker.kafak.topic=a &&
        typo "additional properties 'bootstrap_server' not allowed" \
            --set settings.broker.kafka.bootstrap_server=a:9092 &&
        typo "additional properties 'tlsSecret' not allowed" --set ingress.tlsSecret=a &&
        typo "additional properties 'labells' not allowed" --set serviceMonitor.labells.a=b &&
        refused "missing property 'bootstrap_servers'" template --set settings.broker.kafka.topic=a &&
        typo "'/settings/ack'" --set settings.ack=journalled &&
        typo "'/settings/broker/kafka/topology'" --set settings.broker.kafka.topology=declared &&
        typo "'/settings/shutdown/grace'" --set-string settings.shutdown.grace=20 &&
        typo "'/settings/buffer/max_bytes'" --set settings.buffer.max_bytes=64MB &&
        typo "'/settings/ingress/listen'" --set settings.ingress.listen=localhost:8080 &&
        typo "'/settings/state_directory'" --set settings.state_directory=state &&
        typo "'/settings/sources/plextrac/secrets/0/file'" \
            --set-json 'settings.sources.plextrac.secrets=[{"id": "a", "file": ""}]' &&
        typo "additional properties 'Plextrac' not allowed" --set settings.sources.Plextrac.path=/x &&
        typo "'/image/pullPolicy'" --set image.pullPolicy=always &&
        typo "'/prometheusRule/silence'" --set prometheusRule.silence=1day
}
# A ConfigMap is no place for them.
schema_keeps_secrets_out() {
    typo "additional properties 'secret' not allowed" --set settings.sources.plextrac.secret=0123456789abcdef &&
        typo "additional properties 'value' not allowed" \
            --set-json 'settings.sources.plextrac.secrets=[{"id": "a", "value": "0123456789abcdef"}]' &&
        typo "additional properties 'password' not allowed" --set settings.broker.kafka.password=a &&
        typo "'/settings/broker/rabbitmq/uri'" \
            --set settings.broker.rabbitmq.uri=amqps://user:password@rabbitmq &&
        typo "'/settings/broker/rabbitmq/uris/0'" \
            --set 'settings.broker.rabbitmq.uris={amqps://user:password@rabbitmq}' &&
        typo "'/settings/broker/nats/servers/0'" \
            --set 'settings.broker.nats.servers={nats://user:password@nats}'
}
templates_refuse_contradictions() {
    refused "settings.broker names 0 brokers" template --set existingSecret=a &&
        refused "settings.broker names 2 brokers" template -f "$minimal" -f "$chart/ci/nats-values.yaml" &&
        refused "settings.sources names no source" template -f "$minimal" --set settings.sources.plextrac=null &&
        refused "existingSecret is not set" template -f "$minimal" --set existingSecret= &&
        refused "needs settings.state_directory" template -f "$minimal" \
            --set settings.state_directory=,settings.ack=journaled &&
        refused "have the same port" template -f "$minimal" --set settings.admin.listen=0.0.0.0:8080 &&
        refused "may take 400 MiB" template -f "$minimal" \
            --set persistence.size=399Mi,settings.journal.max_bytes=80MiB &&
        templates_refuse_listening_on_loopback && templates_refuse_equal_paths &&
        refused "ingress.host is not set" template -f "$minimal" --set ingress.enabled=true
}
# Nothing outside the pod reaches it.
templates_refuse_listening_on_loopback() {
    local key address
    for key in ingress admin; do
        for address in 127.0.0.1 127.1.2.3 '[::1]' '[0:0:0:0:0:0:0:1]' '[::ffff:127.0.0.1]'; do
            refused "settings.$key.listen is a loopback address" template -f "$minimal" \
                --set "settings.$key.listen=$address:8088" || return 1
        done
        template -f "$minimal" --set "settings.$key.listen=[fd00::1]:8088" >/dev/null || return 1
    done
}
templates_refuse_equal_paths() {
    local sources
    for sources in '{"a": {}, "b": {}}' '{"a": {}, "b": {"path": "/webhooks/plextrac"}}' \
        '{"a": {"path": "/x"}, "b": {"path": "/x"}}'; do
        refused "answer the same path" template -f "$minimal" --set settings.sources.plextrac=null \
            --set-json "settings.sources=$sources" || return 1
    done
    template -f "$minimal" --set settings.sources.second.path=/second >/dev/null
}
# The checks of what is rendered see what they are for.
checks_can_fail() {
    local file=$temporary/wrong.yaml argument words
    while IFS='|' read -r argument words; do
        template -f "$minimal" --set-json "$argument" >"$file"
        refused "$words" manifests pods "$file" || return 1
    done <<'END'
podSecurityContext.runAsNonRoot=false|runAsNonRoot is not true
podSecurityContext.runAsUser=0|runAsUser is 0
podSecurityContext.seccompProfile=null|no seccompProfile
podSecurityContext.sysctls=[{"name": "kernel.sem", "value": "1"}]|the sysctl kernel.sem
securityContext.allowPrivilegeEscalation=null|allowPrivilegeEscalation is not false
securityContext.capabilities.drop=["NET_RAW"]|capabilities are not dropped
securityContext.capabilities.add=["SYS_ADMIN"]|capabilities are added
securityContext.privileged=true|privileged
securityContext.readOnlyRootFilesystem=false|readOnlyRootFilesystem is not true
extraVolumes=[{"name": "host", "hostPath": {"path": "/"}}]|the volume host is of kind hostPath
extraEnv=[{"name": "PLEXTRAC_BRIDGE_DEFAULTS", "value": "/image.toml"}]|goes before the settings
END
    template -f "$minimal" --set-json 'extraVolumes=[{"name": "a", "emptyDirr": {}}]' >"$file"
    refused "emptyDirr" valid "$newest" "$file" || return 1
    printf 'apiVersion: apps/v1\nkind: Deploymnet\nmetadata:\n  name: a\n' >"$file"
    refused "Deploymnet" valid "$newest" "$file"
}

# What a stop leaves is in the volume, so it need not be waited for; without one it would be lost.
grace_is_short_with_a_volume() {
    local values grace seconds
    while read -r values grace seconds; do
        template -f "$minimal" --set "$values" >"$temporary/grace.yaml"
        grep -qxF "    grace = \"$grace\"" "$temporary/grace.yaml" || { echo "$values: not $grace" && return 1; }
        grep -qxF "      terminationGracePeriodSeconds: $seconds" "$temporary/grace.yaml" ||
            { echo "$values: not $seconds s" && return 1; }
    done <<'END'
replicas=1 2s 17
settings.state_directory= 20s 35
settings.shutdown.grace=9s 9s 24
END
}
# The port of the token endpoint, in all of its forms.
tokens_are_reached() {
    local endpoint port
    while read -r endpoint port; do
        template -f "$chart/ci/rabbitmq-values.yaml" --set "settings.broker.rabbitmq.oauth_token_endpoint=$endpoint" \
            >"$temporary/tokens.yaml"
        manifests pods "$temporary/tokens.yaml" || return 1
        grep -qxF "        - port: $port" "$temporary/tokens.yaml" || { echo "$endpoint: not $port" && return 1; }
    done <<'END'
https://login.example.com/token 443
https://login.example.com:8443/token?audience=a:1 8443
http://login.example.com/token:9999 80
https://[fd00::1]/token 443
https://[fd00::1]:9443 9443
END
}
# The port of RabbitMQ, in all of its forms.
rabbitmq_is_reached() {
    local uri port
    while read -r uri port; do
        template -f "$chart/ci/rabbitmq-values.yaml" --set "settings.broker.rabbitmq.uris={$uri}" \
            >"$temporary/rabbitmq.yaml"
        manifests pods "$temporary/rabbitmq.yaml" || return 1
        grep -qxF "        - port: $port" "$temporary/rabbitmq.yaml" || { echo "$uri: not $port" && return 1; }
    done <<'END'
amqp://rabbitmq 5672
amqps://rabbitmq/%2f 5671
amqp://rabbitmq:5673/a:1 5673
amqps://[fd00::15]/%2f 5671
amqp://[fd00::15] 5672
amqps://[fd00::15]:5673/%2f 5673
END
}
silence_is_off_by_default() {
    local all=$chart/ci/everything-values.yaml
    [ "$(template -f "$all" | grep -c 'alert: PlexTracBridgeSilent')" = 1 ] &&
        [ "$(template -f "$all" --set prometheusRule.silence= | grep -c 'alert: PlexTracBridgeSilent')" = 0 ]
}

program_is_asked() { # BINARY
    template -f "$minimal" --set 'settings.broker.kafka.topic=no topic' >"$temporary/wrong.yaml"
    refused "broker.kafka.topic" manifests accepted "$temporary/wrong.yaml" "$1"
}

if [ $# = 0 ]; then
    check "its package has the alerts and the dashboard, its directory links to them (helm package)" packed
    check "its version is Cargo.toml's" manifests version
fi
for values in "$chart"/ci/*-values.yaml; do
    name=${values##*/}
    file=$temporary/$name
    if [ $# = 0 ]; then check "$name (helm lint --strict)" lint -f "$values"; fi
    check "$name (helm template)" template_to "$file" -f "$values"
    if [ $# = 0 ]; then
        check "$name (kubernetes-validate $oldest)" valid "$oldest" "$file"
        check "$name (kubernetes-validate $newest)" valid "$newest" "$file"
        check "$name (restricted Pod Security, agreement with the settings)" manifests pods "$file"
        check "$name (monitoring)" manifests monitoring "$file"
    else
        check "$name (plextrac-bridge check)" manifests accepted "$file" "$(realpath "$1")"
    fi
done
if [ $# = 0 ]; then
    check "typos are refused" schema_catches_typos
    check "secrets in the values are refused" schema_keeps_secrets_out
    check "contradictions are refused" templates_refuse_contradictions
    check "a stop is short where a volume keeps what it leaves" grace_is_short_with_a_volume
    check "tokens are fetched from where the settings say" tokens_are_reached
    check "RabbitMQ is reached where the settings say" rabbitmq_is_reached
    check "the alert for silence is off by default" silence_is_off_by_default
    check "these checks can fail" checks_can_fail
else
    check "this check can fail" program_is_asked "$(realpath "$1")"
fi

report chart
