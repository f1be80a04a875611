"""Environment variables of Ray Tune that a sweep and its workers need."""

from __future__ import annotations

STOP_TIMEOUT_VAR = (
    "TUNE_FUNCTION_THREAD_TIMEOUT_S"  # time for a stopped trial to save its state before its process is killed
)
# set before Ray starts, so that workers inherit them; a value set by the user takes precedence
ENVIRONMENT = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # trials use the .presto of the command
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the command, and Ray with it
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # the last result of a trial holds no metric
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    STOP_TIMEOUT_VAR: "600",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "1000000",
    "RAY_AIR_NEW_OUTPUT": "0",
}
