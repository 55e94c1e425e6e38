#!/usr/bin/env bash
# A SLURM cluster of one node, this machine, for tests. It needs Debian's packages slurm-wlm and munge, and root.
#
#   one_node.sh start FOLDER     starts munged, slurmctld and slurmd; FOLDER holds all their files
#   one_node.sh restart FOLDER   ends slurmctld and starts it again, as a restart of the controller does
#   one_node.sh stop FOLDER      ends the three
#
# The programs of SLURM find the cluster by SLURM_CONF=FOLDER/slurm.conf.
set -euo pipefail
command=${1:?start, restart or stop} folder=$(realpath -m "${2:?a folder}") node=$(hostname -s)
export SLURM_CONF=$folder/slurm.conf

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

configure() {
  mkdir -p "$folder/state" "$folder/spool"
  chmod 755 "$folder"
  dd if=/dev/urandom of="$folder/munge.key" bs=1024 count=1 status=none
  chmod 400 "$folder/munge.key"
  # A requeued job waits for cred_expire seconds.
  cat > "$SLURM_CONF" <<CONF
ClusterName=tests
SlurmctldHost=$node(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
AuthInfo=socket=$folder/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=1,sched_interval=5,bf_interval=5
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=30
MinJobAge=300
NodeName=$node NodeAddr=127.0.0.1 CPUs=${CPUS:-2} State=UNKNOWN
PartitionName=tests Nodes=$node Default=YES MaxTime=INFINITE State=UP
CONF
}

end() {  # ends the daemon whose process file this is
  local pid
  pid=$(cat "$folder/$1.pid" 2> /dev/null) || return 0
  kill "$pid" 2> /dev/null || true
  for _ in $(seq 100); do kill -0 "$pid" 2> /dev/null || return 0; sleep 0.1; done
  kill -9 "$pid" 2> /dev/null || true
}

answers() {  # waits until the controller answers and the node takes jobs
  for _ in $(seq 150); do
    [ "$(sinfo -h -o %t 2> /dev/null)" = "${1:-idle}" ] && return
    sleep 0.2
  done
  echo "the cluster did not start; see $folder/slurmctld.log and $folder/slurmd.log" >&2
  exit 1
}

case $command in
  start)
    configure
    munged --force --key-file "$folder/munge.key" --socket "$folder/munge.socket" --pid-file "$folder/munged.pid" \
      --log-file "$folder/munged.log" --seed-file "$folder/munge.seed"
    slurmctld
    slurmd
    answers
    ;;
  restart)
    end slurmctld
    slurmctld
    ;;
  stop)
    end slurmd
    end slurmctld
    end munged
    ;;
  *)
    echo "start, restart or stop, not $command" >&2
    exit 2
    ;;
esac
