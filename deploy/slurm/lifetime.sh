# The life of a job under Slurm: signals, exit codes, another try, requeueing.
#
# Needs: run_command "$@" (runs the command once, returns its exit code), start_cluster, stop_cluster
# and cluster_lives; DEPTHSCOPE_FOLDER, the job's own folder on the shared file system;
# DEPTHSCOPE_STORE, whose commits tell whether a run got anywhere (may be empty).
#
# Exit code 75 means stopped and resumable. A command that was killed is resumable too, since what
# is committed is complete. USR1 comes from Slurm before the time limit (--signal=B:USR1@SECONDS) or,
# with PreemptParameters=send_user_signal, before preemption: the command stops at its next commit,
# and the job goes back to the queue. A node that fails makes Slurm itself requeue the job. TERM
# comes from scancel and from preemption, when Slurm itself decides whether the job returns; and as a
# warning at the beginning of a preemption's grace time, when the job still counts as running and is
# ours to requeue. Tries that commit nothing are counted, so nothing runs forever.

FRUITLESS_AT_MOST=3

stopping=""
command_pid=""

say() { printf 'depthscope: %s\n' "$*" >&2; }

# What must not outlive the job; a cluster's own wrapper says what that is.
forget_secrets() { :; }

# Whether Slurm means the job to run; it sets another state before it ends a job's processes.
job_runs() { [[ $(timeout 3 squeue -h -j "$SLURM_JOB_ID" -o %T 2>/dev/null) == RUNNING* ]]; }

on_signal() {
  stopping=$1
  # Under a grace time there is time to stop, and Slurm would not bring the job back.
  if [[ $1 == TERM ]] && job_runs; then stopping=USR1; fi
  say "$1 from Slurm: stopping at the next commit"
  # There may be no time for more: Slurm is ending every process of the job.
  if [[ $stopping == TERM ]]; then forget_secrets; fi
  if [[ -n $command_pid ]]; then kill -TERM "$command_pid" 2>/dev/null || true; fi
}

committed() {
  local folder=${DEPTHSCOPE_STORE:-}/commits
  if [[ -n ${DEPTHSCOPE_STORE:-} && -d $folder ]]; then
    find "$folder" -name '*.json' | wc -l
  else
    echo 0
  fi
}

resumable() { (($1 == 75 || $1 >= 128)); }

# Runs its words in the background, so that signals are heard at once; returns their exit code.
run_and_listen() {
  "$@" &
  command_pid=$!
  # A signal that came between the starts had nobody to stop.
  if [[ -n $stopping ]]; then kill -TERM "$command_pid" 2>/dev/null || true; fi
  while kill -0 "$command_pid" 2>/dev/null; do wait "$command_pid" || true; done
  local code=0
  wait "$command_pid" || code=$?
  command_pid=""
  return "$code"
}

# Runs the command, and again while it was cut short though nobody asked for it.
run_to_the_end() {
  local code before fruitless=0
  while :; do
    before=$(committed)
    code=0
    run_and_listen run_command "$@" || code=$?
    if [[ -n $stopping ]] || ((code == 0)); then return "$code"; fi
    # Whatever a command says that has lost its cluster, it can resume on another.
    if ! cluster_lives; then return 75; fi
    if ! resumable "$code"; then return "$code"; fi
    fruitless=$((fruitless + 1))
    if (($(committed) > before)); then fruitless=0; fi
    if ((fruitless >= FRUITLESS_AT_MOST)); then return "$code"; fi
    say "the command ended with code $code and can resume: it starts again"
  done
}

# Counts starts of the job that committed nothing; the count is kept over requeues.
may_requeue() {
  local file=$DEPTHSCOPE_FOLDER/fruitless${SLURM_ARRAY_TASK_ID:+-$SLURM_ARRAY_TASK_ID} count=0
  if (($(committed) > $1)); then
    rm -f "$file"
    return 0
  fi
  if [[ -f $file ]]; then count=$(<"$file"); fi
  echo $((count + 1)) >"$file"
  ((count + 1 < FRUITLESS_AT_MOST))
}

finish() {
  local code=$1
  echo "$code" >"$DEPTHSCOPE_FOLDER/ended${SLURM_ARRAY_TASK_ID:+-$SLURM_ARRAY_TASK_ID}"
  exit "$code"
}

life() {
  local code=0 before
  trap 'on_signal USR1' USR1
  trap 'on_signal TERM' TERM
  rm -f "$DEPTHSCOPE_FOLDER/ended${SLURM_ARRAY_TASK_ID:+-$SLURM_ARRAY_TASK_ID}"
  before=$(committed)
  start_cluster || code=$?
  if ((code == 0)); then run_to_the_end "$@" || code=$?; fi
  stop_cluster
  if resumable "$code" && [[ $stopping != TERM ]]; then
    if may_requeue "$before"; then
      say "not complete yet (code $code): back to the queue"
      # What is granted ends this script, and there is no more to say.
      trap 'exit 75' TERM
      if scontrol requeue "$SLURM_JOB_ID"; then
        sleep 60 &
        wait "$!"
        exit 75
      fi
      say "Slurm did not requeue the job: submit the same command again to resume"
    else
      say "$FRUITLESS_AT_MOST starts committed nothing: give the job more time, or make its tasks smaller"
    fi
  fi
  finish "$code"
}
