#!/usr/bin/env bash
# Starts clusters of three real nodes on loopback, waits until each cluster is complete, prints their addresses as
# KEY=VALUE. A node that runs, or is stopped by SIGSTOP, is left as it is: after the death of a node the same call
# starts it again, on the same ports, with the same data.
#
#   cluster.sh up [kafka|rabbitmq|nats ...]                       all of them by default
#   cluster.sh down [--kill] [--wipe] [kafka|rabbitmq|nats ...]   --kill: SIGKILL at once   --wipe: removes the data too
#
# BROKERS_HOME            state and logs: $BROKERS_HOME/cluster/<broker>/<1|2|3>/, each with the pid of its node
# KAFKA_CLUSTER_PORT      first of 9 consecutive ports: PLAINTEXT of each node, SASL_PLAINTEXT (SCRAM), controllers (9192)
# RABBITMQ_CLUSTER_PORT   first of 10: AMQP of each, Erlang distribution of each, the nodes' epmd, AMQPS   (5772)
# NATS_CLUSTER_PORT       first of 9: clients of each, routes of each, monitoring of each                   (4322)
#                         each may be `auto`: free ports, kept for the life of that BROKERS_HOME
# BROKERS_OWNER_PID       kill what is started here as soon as that process has ended (a test runner, say)
# CLUSTER_TLS             directory with ca.crt, and N.pem (key and certificate) of each node: clients come over TLS, too, and
#                         show a certificate of that authority (Kafka: on the SASL ports, over TLS only)
# KAFKA_CLUSTER_HEAP      192m, of each node
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

USER_NAME=bridge
USER_PASS=bridge-secret
NODES=(1 2 3)
CLUSTERS=$BROKERS_HOME/cluster

known() {
    local broker
    for broker; do
        case $broker in kafka | rabbitmq | nats) ;; *) die "unknown broker: $broker" ;; esac
    done
}

up() { # BROKER
    local broker=$1 n started='' t0
    HOME_OF=$CLUSTERS/$broker
    mkdir -p "$HOME_OF"
    exec 9>"$HOME_OF/.lock"
    flock 9 # two callers at once: the second finds it running
    t0=$(now_ms)
    trap '[ $? = 0 ] || "$BROKERS_DIR/cluster.sh" down --kill "$broker"' EXIT # leave nothing half started
    # First, so that nothing outlives an owner that ends in the middle of this.
    if [ -n "${BROKERS_OWNER_PID:-}" ] && ! live_pid "$HOME_OF/watch.pid" >/dev/null; then
        # shellcheck disable=SC2016
        spawn "$HOME_OF/watch.pid" /dev/null bash -c \
            'while kill -0 "$1" 2>/dev/null; do sleep 0.5; done; exec "$2" down --kill "$3"' \
            watch "$BROKERS_OWNER_PID" "$BROKERS_DIR/cluster.sh" "$broker"
    fi
    "${broker}_prepare"
    for n in "${NODES[@]}"; do
        STATE=$HOME_OF/$n LOG=$HOME_OF/$n/log
        live_pid "$STATE/pid" >/dev/null && continue
        started+=" $n"
        (cd "$STATE" && "${broker}_spawn" "$n") # where a node that crashes leaves its dump
        # The second and third node of RabbitMQ look for the first one and join it.
        [ "$broker-$n" != rabbitmq-1 ] || [ -e "$HOME_OF/formed" ] || await_node "$broker" 1
    done
    if [ -n "$started" ]; then
        for n in $started; do
            await_node "$broker" "$n"
        done
        say "$broker:$started ready after $(secs $(($(now_ms) - t0))) s"
    fi
    touch "$HOME_OF/formed"
}

await_node() { # BROKER NODE
    await "node $2 of $1" "$HOME_OF/$2/pid" "$HOME_OF/$2/log" 120 "$1_ready" "$2"
}

# What the other nodes listen on is taken, and theirs.
first_port() { # ASKED DEFAULT N
    local n
    for n in "${NODES[@]}"; do
        if live_pid "$HOME_OF/$n/pid" >/dev/null; then
            cat "$HOME_OF/port"
            return
        fi
    done
    base_port "$HOME_OF" "$@"
}

# The addresses of the three nodes with commas between.
addresses() { # FIRST_PORT [PREFIX [SUFFIX]]
    printf "${2:-}127.0.0.1:%s${3:-}," "$1" "$(($1 + 1))" "$(($1 + 2))" | sed 's/,$//'
}

kafka_prepare() {
    local n node dist=$BROKERS_DIST/kafka
    [ -d "$dist/libs" ] || die "Kafka is not installed: run install.sh"
    PORT=$(first_port "${KAFKA_CLUSTER_PORT:-}" 9192 9)
    # The class archive holds for exactly this class path, so: no wildcard, a fixed order.
    JVM=(java -cp "$(printf '%s\n' "$dist"/libs/*.jar | LC_ALL=C sort | paste -sd:)" -Xshare:auto -XX:-UsePerfData
        -XX:+UseSerialGC -XX:TieredStopAtLevel=1)
    [ ! -s "$dist/kafka.jsa" ] || JVM+=(-XX:SharedArchiveFile="$dist/kafka.jsa" -Xlog:cds=off -Xlog:cds+dynamic=off)
    for n in "${NODES[@]}"; do
        node=$HOME_OF/$n
        mkdir -p "$node"
        kafka_configure "$n" >"$node/server.properties"
        cat >"$node/log4j2.properties" <<END
status = error
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d{HH:mm:ss.SSS} %-5p %m (%c)%n
rootLogger.level = WARN
rootLogger.appenderRef.out.ref = out
END
        if [ -s "$node/data/meta.properties" ]; then
            continue
        elif [ "$n" = 1 ]; then
            "${JVM[@]}" -Xmx128m -Dlog4j2.configurationFile="$node/log4j2.properties" kafka.tools.StorageTool format \
                --cluster-id "$(uuid)" --config "$node/server.properties" >>"$node/log" 2>&1 ||
                { tail -n 15 "$node/log" >&2; die "kafka storage format"; }
        else
            # As the tool writes it for this node, without two more starts of Java.
            cp -r "$HOME_OF/1/data" "$node/data"
            sed -i "s/^node.id=.*/node.id=$n/; s/^directory.id=.*/directory.id=$(uuid)/" "$node/data/meta.properties"
        fi
    done
}
# Sixteen random bytes as Kafka writes them, without a leading hyphen.
uuid() { head -c 16 /dev/urandom | base64 | tr '+/' '-_' | sed 's/^-/A/; s/=*$//'; }
# A controller that is gone is given up after 2 s, and so is the leader of a partition: long before a test gives up.
kafka_configure() { # NODE
    cat <<END
process.roles=broker,controller
node.id=$1
controller.quorum.voters=1@127.0.0.1:$((PORT + 6)),2@127.0.0.1:$((PORT + 7)),3@127.0.0.1:$((PORT + 8))
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:$((PORT + $1 - 1)),SASL_PLAINTEXT://127.0.0.1:$((PORT + $1 + 2)),CONTROLLER://127.0.0.1:$((PORT + $1 + 5))
advertised.listeners=PLAINTEXT://127.0.0.1:$((PORT + $1 - 1)),SASL_PLAINTEXT://127.0.0.1:$((PORT + $1 + 2))
inter.broker.listener.name=PLAINTEXT
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:$(kafka_clients),CONTROLLER:PLAINTEXT
sasl.enabled.mechanisms=SCRAM-SHA-256
listener.name.sasl_plaintext.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
# Clients log in again this often, so that an old password ends.
listener.name.sasl_plaintext.scram-sha-256.connections.max.reauth.ms=5000
log.dirs=$HOME_OF/$1/data
num.network.threads=2
listener.name.sasl_plaintext.num.network.threads=1
num.io.threads=4
background.threads=2
num.recovery.threads.per.data.dir=1
log.cleaner.dedupe.buffer.size=4194304
num.partitions=3
default.replication.factor=3
min.insync.replicas=2
auto.create.topics.enable=false
auto.leader.rebalance.enable=false
offsets.topic.num.partitions=1
transaction.state.log.num.partitions=1
share.coordinator.state.topic.num.partitions=1
group.initial.rebalance.delay.ms=0
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
END
    [ -z "${CLUSTER_TLS:-}" ] || cat <<END
listener.name.sasl_plaintext.ssl.keystore.type=PEM
listener.name.sasl_plaintext.ssl.keystore.location=$CLUSTER_TLS/$1.pem
listener.name.sasl_plaintext.ssl.truststore.type=PEM
listener.name.sasl_plaintext.ssl.truststore.location=$CLUSTER_TLS/ca.crt
listener.name.sasl_plaintext.ssl.client.auth=required
END
}
kafka_clients() { [ -n "${CLUSTER_TLS:-}" ] && echo SASL_SSL || echo SASL_PLAINTEXT; }
kafka_spawn() { # NODE
    spawn "$STATE/pid" "$LOG" "${JVM[@]}" -Dlog4j2.configurationFile="$STATE/log4j2.properties" \
        -Xms64m -Xmx"${KAFKA_CLUSTER_HEAP:-192m}" kafka.Kafka "$STATE/server.properties"
}
kafka_ready() { # NODE
    # Paused ones are members until they are given up, dead ones are not: how many there are is not asked.
    port_open $((PORT + $1 - 1)) && kcat -b "127.0.0.1:$((PORT + $1 - 1))" -L -m 3 | grep -q "^  broker $1 at "
}
kafka_facts() {
    echo "KAFKA_CLUSTER_BOOTSTRAP=$(addresses "$PORT")"
    echo "KAFKA_CLUSTER_SASL_BOOTSTRAP=$(addresses $((PORT + 3)))"
}

rabbitmq_prepare() {
    local n node
    [ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] || die "RabbitMQ is not installed: run install.sh"
    PORT=$(first_port "${RABBITMQ_CLUSTER_PORT:-}" 5772 10)
    for n in "${NODES[@]}"; do
        node=$HOME_OF/$n
        mkdir -p "$node"
        (umask 077 && printf clustercookie >"$node/.erlang.cookie")
        printf '[].\n' >"$node/enabled_plugins"
        cat >"$node/rabbitmq.conf" <<END
listeners.tcp.1 = 127.0.0.1:$((PORT + n - 1))
num_acceptors.tcp = 2
loopback_users = none
cluster_formation.peer_discovery_backend = classic_config
cluster_formation.classic_config.nodes.1 = bridge1@127.0.0.1
cluster_formation.classic_config.nodes.2 = bridge2@127.0.0.1
cluster_formation.classic_config.nodes.3 = bridge3@127.0.0.1
cluster_partition_handling = pause_minority
default_user = $USER_NAME
default_pass = $USER_PASS
vm_memory_high_watermark.absolute = 1GB
disk_free_limit.absolute = 50MB
log.console = true
log.console.level = warning
log.file = false
END
        [ -z "${CLUSTER_TLS:-}" ] || cat >>"$node/rabbitmq.conf" <<END
listeners.ssl.1 = 127.0.0.1:$((PORT + n + 6))
ssl_options.cacertfile = $CLUSTER_TLS/ca.crt
ssl_options.certfile = $CLUSTER_TLS/$n.pem
ssl_options.keyfile = $CLUSTER_TLS/$n.pem
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = true
END
        # Everything the server and its tools need to know of this node.
        cat >"$node/env" <<END
export HOME='$node' RABBITMQ_CONF_ENV_FILE=/dev/null
export RABBITMQ_NODENAME=bridge$n@127.0.0.1 RABBITMQ_USE_LONGNAME=true RABBITMQ_CONFIG_FILE='$node/rabbitmq.conf'
export RABBITMQ_MNESIA_BASE='$node/mnesia' RABBITMQ_LOG_BASE='$node/logs' RABBITMQ_LOGS=-
export RABBITMQ_ENABLED_PLUGINS_FILE='$node/enabled_plugins' RABBITMQ_GENERATED_CONFIG_DIR='$node/config'
export RABBITMQ_DIST_PORT=$((PORT + n + 2)) ERL_EPMD_PORT=$((PORT + 6)) ERL_EPMD_ADDRESS=127.0.0.1
export RABBITMQ_SCHEDULER_BIND_TYPE=u RABBITMQ_MAX_NUMBER_OF_PROCESSES=131072 RABBITMQ_MAX_NUMBER_OF_ATOMS=1048576
export RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS='-kernel inet_dist_use_interface {127,0,0,1} +S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none'
unset NOTIFY_SOCKET RABBITMQ_PID_FILE RABBITMQ_PORT RABBITMQ_CONF RABBITMQ_PLUGINS
END
    done
    # One name daemon for the three, in the foreground: the one Erlang would start itself is shared, and outlives them.
    if ! live_pid "$HOME_OF/epmd.pid" >/dev/null; then
        spawn "$HOME_OF/epmd.pid" "$HOME_OF/epmd.log" epmd -address 127.0.0.1 -port $((PORT + 6))
        await epmd "$HOME_OF/epmd.pid" "$HOME_OF/epmd.log" 5 port_open $((PORT + 6))
    fi
}
rabbitmq_spawn() { # NODE
    . "$STATE/env"
    # As under systemd the script replaces itself by the Erlang machine, so the pid is the node's.
    RUNNING_UNDER_SYSTEMD=true spawn "$STATE/pid" "$LOG" /usr/lib/rabbitmq/bin/rabbitmq-server
}
rabbitmq_ready() ( # NODE: the AMQP 0-9-1 greeting, answered by a method frame (Connection.Start)
    exec 3<>"/dev/tcp/127.0.0.1/$((PORT + $1 - 1))" && printf 'AMQP\0\0\11\1' >&3 && IFS= read -r -N 1 -t 3 -u 3 byte &&
        [ "$byte" = $'\1' ]
)
rabbitmq_facts() {
    [ -z "${CLUSTER_TLS:-}" ] ||
        echo "RABBITMQ_CLUSTER_TLS_URLS=$(addresses $((PORT + 7)) "amqps://" /%%2f)"
    echo "RABBITMQ_CLUSTER_URLS=$(addresses "$PORT" "amqp://$USER_NAME:$USER_PASS@" /%%2f)"
    echo "RABBITMQ_CLUSTER_DISTRIBUTION=$(addresses $((PORT + 3)))"
}

nats_prepare() {
    local n m node routes
    [ -x "$BROKERS_DIST/nats/nats-server" ] || die "nats-server is not installed: run install.sh"
    PORT=$(first_port "${NATS_CLUSTER_PORT:-}" 4322 9)
    for n in "${NODES[@]}"; do
        node=$HOME_OF/$n
        mkdir -p "$node"
        # After a change a node reads it again at SIGHUP.
        [ -s "$node/users.conf" ] || cat >"$node/users.conf" <<END
USERS: [ { user: anonymous, password: anonymous }, { user: $USER_NAME, password: $USER_PASS } ]
END
        routes=
        for m in "${NODES[@]}"; do
            [ "$m" = "$n" ] || routes+="${routes:+, }\"nats-route://127.0.0.1:$((PORT + m + 2))\""
        done
        cat >"$node/nats.conf" <<END
server_name: node$n
listen: 127.0.0.1:$((PORT + n - 1))
http: 127.0.0.1:$((PORT + n + 5))
jetstream { store_dir: "$node/data", max_memory_store: 268435456, max_file_store: 8589934592 }
include 'users.conf'
no_auth_user: anonymous
authorization { users: \$USERS }
cluster { name: cluster, listen: 127.0.0.1:$((PORT + n + 2)), routes: [$routes] }
END
        [ -z "${CLUSTER_TLS:-}" ] || cat >>"$node/nats.conf" <<END
allow_non_tls: true
tls { cert_file: "$CLUSTER_TLS/$n.pem", key_file: "$CLUSTER_TLS/$n.pem", ca_file: "$CLUSTER_TLS/ca.crt", verify: true }
END
    done
}
nats_spawn() { # NODE
    spawn "$STATE/pid" "$LOG" "$BROKERS_DIST/nats/nats-server" -c "$STATE/nats.conf"
}
nats_ready() ( # NODE: /healthz is 200 once JetStream has its leader and its streams
    exec 3<>"/dev/tcp/127.0.0.1/$((PORT + $1 + 5))" && printf 'GET /healthz HTTP/1.0\r\n\r\n' >&3 &&
        IFS= read -r -t 3 -u 3 line && [[ $line == "HTTP/1."?" 200 "* ]]
)
nats_facts() {
    echo "NATS_CLUSTER_URLS=$(addresses "$PORT" nats://)"
    echo "NATS_CLUSTER_MONITORING=$(addresses $((PORT + 6)))"
    echo "NATS_CLUSTER_DIRECTORIES=$(printf "$CLUSTERS/nats/%s," "${NODES[@]}" | sed 's/,$//')"
}

down() { # SIGNAL WIPE BROKER
    local home=$CLUSTERS/$3 n t0 watch ended='' jobs=()
    [ -d "$home" ] || return 0
    t0=$(now_ms)
    watch=$(live_pid "$home/watch.pid" || true)
    if [ "$watch" = "$$" ]; then rm -f "$home/watch.pid"; else stop_pid "$home/watch.pid" KILL 5; fi
    for n in "${NODES[@]}"; do
        live_pid "$home/$n/pid" >/dev/null || continue
        ended+=" $n"
        # A paused node would never see another signal.
        [ "$1" = KILL ] || kill -CONT "$(live_pid "$home/$n/pid")" 2>/dev/null || true
        # All at once. The last one has no majority left, and may wait for it: not for long.
        stop_pid "$home/$n/pid" "$1" 15 &
        jobs+=($!)
    done
    [ ${#jobs[@]} = 0 ] || wait "${jobs[@]}"
    [ "$3" != rabbitmq ] || stop_pid "$home/epmd.pid" TERM 5
    [ -z "$ended" ] || say "$3:$ended ended after $(secs $(($(now_ms) - t0))) s of SIG$1"
    [ -z "$2" ] || rm -rf "$home"
}

all_up() {
    local jobs=() job broker failed=
    for broker; do
        up "$broker" &
        jobs+=($!)
    done
    for job in "${jobs[@]}"; do
        wait "$job" || failed=1
    done
    [ -z "$failed" ] || exit 1
    for broker; do
        PORT=$(cat "$CLUSTERS/$broker/port")
        "${broker}_facts"
    done
}

command=${1:-}
[ $# = 0 ] || shift
signal=TERM wipe=
while [ "$command" = down ] && [ $# -gt 0 ]; do
    case $1 in
    --kill) signal=KILL ;;
    --wipe) wipe=1 ;;
    *) break ;;
    esac
    shift
done
[ $# -gt 0 ] || set -- kafka rabbitmq nats
known "$@"
case $command in
up) all_up "$@" ;;
down) for broker; do down "$signal" "$wipe" "$broker"; done ;;
*) echo "usage: cluster.sh up|down [--kill] [--wipe] [kafka|rabbitmq|nats ...]" >&2 && exit 2 ;;
esac
