#!/usr/bin/env bash
# start.sh FOLDER: start a one-node Slurm for tests in FOLDER (8 CPUs and 2 GPUs as Slurm counts
# them). It needs root and the Debian packages slurm-wlm and munge. Outside FOLDER it creates one
# link, /etc/slurm/slurm.conf, and refuses if that file exists: the executor plugin hides
# $SLURM_CONF from the srun inside a job. start.sh FOLDER stop: end its daemons and remove the link.
# FOLDER is absolute and short: a socket's path has at most 107 characters.
set -euo pipefail
folder=$1
node=$(hostname -s)
daemons="slurmd slurmctld munged"
link=/etc/slurm/slurm.conf

if [ "${2:-start}" = stop ]; then
  for daemon in $daemons; do
    if [ -f "$folder/$daemon.pid" ]; then kill "$(cat "$folder/$daemon.pid")" || true; fi
  done
  if [ "$(readlink "$link")" = "$folder/slurm.conf" ]; then rm "$link"; fi
  exit 0
fi

if [ -e "$link" ]; then
  echo "$link exists: this machine has a Slurm of its own" >&2
  exit 1
fi

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'; }

chmod 755 "$folder"
mkdir -p "$folder/state" "$folder/spool"
(umask 077 && head -c 1024 /dev/urandom > "$folder/munge.key")
# A container has no cgroups, systemd or accounting data base. config_overrides: the node has the
# resources written here.
cat > "$folder/slurm.conf" <<EOF
ClusterName=tests
SlurmctldHost=$node(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CryptoType=crypto/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=1,sched_interval=2,bf_interval=2,requeue_delay=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobRequeue=1
KillWait=2
MinJobAge=600
GresTypes=gpu
NodeName=$node NodeAddr=127.0.0.1 CPUs=8 RealMemory=512000 Gres=gpu:2 State=UNKNOWN
PartitionName=tests Nodes=$node Default=YES MaxTime=INFINITE State=UP
EOF
touch "$folder/gpu0" "$folder/gpu1"
echo "Name=gpu File=$folder/gpu[0-1]" > "$folder/gres.conf"

ln -s "$folder/slurm.conf" "$link"
export SLURM_CONF=$folder/slurm.conf # the daemons look for gres.conf beside it
munged --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
  --log-file="$folder/munged.log" --seed-file="$folder/munge.seed"
slurmctld
slurmd -N "$node"
for _ in $(seq 100); do
  if [ "$(sinfo --noheader --format=%T 2> /dev/null)" = idle ]; then exit 0; fi
  sleep 0.2
done
echo "Slurm did not start: see $folder/*.log" >&2
exit 1
