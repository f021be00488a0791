#!/usr/bin/env bash
# A Slurm cluster of two nodes on this machine, for tests and for a look at a real queue; needs root, and
# Debian's slurm-wlm and munge. The nodes are called as the machine and localhost, so that both names lead here.
#
#     slurm_cluster.sh start FOLDER     configuration, state and logs go to FOLDER; prints what to export
#     slurm_cluster.sh stop FOLDER
#
# Two partitions share the nodes: a job of `urgent` preempts one of `normal`, which is put back into the queue.
# A job that ends has 20 seconds from SIGTERM to SIGKILL (Slurm's default is 30).
set -euo pipefail

folder=$(realpath -m "${2:?usage: slurm_cluster.sh start|stop FOLDER}")
export SLURM_CONF=$folder/slurm.conf

start() {
    mkdir -p "$folder"/{state,log,munge}
    chmod 755 "$folder" "$folder/munge"
    chown munge: "$folder/munge"
    host=$(hostname -s)
    cpus=$(nproc)
    base=${LLMLAB_SLURM_PORT:-17600}
    cat >"$SLURM_CONF" <<CONF
ClusterName=lab
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$base
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool-%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
KillWait=20
MinJobAge=300
InactiveLimit=0
NodeName=$host NodeHostname=$host NodeAddr=127.0.0.1 Port=$((base + 1)) CPUs=$cpus RealMemory=2000 State=UNKNOWN
NodeName=localhost NodeHostname=$host NodeAddr=127.0.0.1 Port=$((base + 2)) CPUs=$cpus RealMemory=2000 State=UNKNOWN
PartitionName=normal Nodes=ALL Default=YES PriorityTier=1 MaxTime=INFINITE State=UP
PartitionName=urgent Nodes=ALL PriorityTier=10 MaxTime=INFINITE State=UP
CONF
    # a job that was put back may start again once its credential is over: 5 seconds, where 120 are usual
    runuser -u munge -- munged --socket="$folder/munge/socket" --pid-file="$folder/munge/pid" \
        --log-file="$folder/munge/log" --seed-file="$folder/munge/seed" --force
    slurmctld -i
    for node in "$host" localhost; do
        mkdir -p "$folder/spool-$node"
        slurmd -N "$node"
    done
    for _ in $(seq 100); do
        if [ "$(sinfo -h -N -t idle -o %N 2>/dev/null | sort -u | wc -l)" = 2 ]; then
            echo "export SLURM_CONF=$SLURM_CONF"
            return
        fi
        sleep 0.3
    done
    tail -n 5 "$folder"/log/*.log >&2
    return 1
}

stop() {
    scancel --user="$(id -un)" 2>/dev/null || true
    for file in "$folder"/slurmd-*.pid "$folder/slurmctld.pid" "$folder/munge/pid"; do
        [ -f "$file" ] || continue
        pid=$(cat "$file")
        kill "$pid" 2>/dev/null || true
        for _ in $(seq 100); do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.2
        done
    done
}

"$1"
