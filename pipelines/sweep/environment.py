"""Environment variables of Ray Tune that a sweep needs, for its workers too."""

from __future__ import annotations

STOP_TIMEOUT_VAR = (
    "TUNE_FUNCTION_THREAD_TIMEOUT_S"  # for a stopped trial to save its state, before its process is given up
)
# before Ray starts, for its workers too; a value the user has set wins
ENVIRONMENT = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # trials find .presto where the command does
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the command, and Ray with it
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial's last word is no metric
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    STOP_TIMEOUT_VAR: "600",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "1000000",
    "RAY_AIR_NEW_OUTPUT": "0",
}
