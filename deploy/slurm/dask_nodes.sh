# Dask workers on the nodes of the job's second component, for the command on its first.
#
# The scheduler runs beside the command. All speak TLS with a certificate made for this job, in a file
# of mode 0600; the command finds the scheduler in DEPTHSCOPE_DASK and the certificate in Dask's own
# variables. Takes the place of what command.sh says of a cluster.

dask_start() {
  local folder=$DEPTHSCOPE_FOLDER/dask-$SLURM_JOB_ID role
  # An earlier start of this job may have left its scheduler's address.
  rm -rf "$folder"
  (umask 077 && mkdir -p "$folder" && openssl req -x509 -newkey rsa:2048 -nodes -days 30 \
    -subj "/CN=depthscope-$SLURM_JOB_ID" -keyout "$folder/key" -out "$folder/certificate" 2>/dev/null &&
    cat "$folder/certificate" >>"$folder/key") || {
    say "openssl cannot make a certificate for Dask"
    return 1
  }
  export DASK_DISTRIBUTED__COMM__TLS__CA_FILE=$folder/certificate
  export DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION=True
  for role in SCHEDULER WORKER CLIENT; do
    export "DASK_DISTRIBUTED__COMM__TLS__${role}__CERT=$folder/certificate"
    export "DASK_DISTRIBUTED__COMM__TLS__${role}__KEY=$folder/key"
  done
  (inside dask scheduler --protocol tls --host "$(own_address)" --port 0 --no-dashboard \
    --scheduler-file "$folder/scheduler.json") >"$folder/scheduler.log" 2>&1 &
  dask_scheduler_pid=$!
  local waited=0
  until [[ -s $folder/scheduler.json ]]; do
    if [[ -n $stopping ]]; then return 75; fi
    if ! kill -0 "$dask_scheduler_pid" 2>/dev/null || ((waited++ > 120)); then
      say "the Dask scheduler did not start:"
      tail -n 5 "$folder/scheduler.log" >&2
      return 1
    fi
    sleep 1
  done
  DEPTHSCOPE_DASK=$(sed -n 's/.*"address": "\([^"]*\)".*/\1/p' "$folder/scheduler.json")
  export DEPTHSCOPE_DASK
  export dask_folder=$folder
  local node_script
  node_script="$(declare -f say inside own_address node_folder dask_node); dask_node"
  srun --het-group=1 --ntasks-per-node=1 --overlap --mem=0 --no-kill --kill-on-bad-exit=0 \
    bash -c "$node_script" >"$folder/workers.log" 2>&1 &
  dask_workers_pid=$!
  dask_watch &
  dask_watch_pid=$!
  say "Dask scheduler at $DEPTHSCOPE_DASK"
}

# Without a worker an analysis would wait for as long as the job may run.
dask_watch() {
  while kill -0 "$dask_workers_pid" 2>/dev/null; do sleep 5; done
  say "the Dask workers have ended:"
  tail -n 5 "$dask_folder/workers.log" >&2
  kill -USR1 "$$"
}

# One node's worker.
dask_node() {
  local temporary worker=""
  temporary=$(node_folder) || exit 1
  export TMPDIR=$temporary
  trap 'if [[ -n $worker ]]; then kill -TERM "$worker" 2>/dev/null; fi' TERM USR2
  (inside dask worker --protocol tls --no-dashboard --nworkers 1 --host "$(own_address)" \
    --nthreads "${SLURM_CPUS_ON_NODE:-1}" --local-directory "$temporary" \
    --scheduler-file "$dask_folder/scheduler.json") &
  worker=$!
  while kill -0 "$worker" 2>/dev/null; do wait "$worker"; done
  rm -rf "$temporary"
}

dask_stop() {
  # srun hands USR2 to every node; TERM would make it kill them at once.
  end_process "${dask_watch_pid:-}" TERM
  end_process "${dask_workers_pid:-}" USR2
  end_process "${dask_scheduler_pid:-}" TERM
  forget_secrets
}

forget_secrets() { rm -f "$DEPTHSCOPE_FOLDER/dask-$SLURM_JOB_ID/key"; }

start_cluster() { begin_scratch && dask_start; }

stop_cluster() {
  dask_stop
  end_scratch
}
