#!/usr/bin/env bash
# Install and start the servers that tests marked `services` need, run the command given, stop what was started.
# No test needs one yet: pytest's "no tests ran" (exit code 5) is then the right outcome, and is said.
set -uo pipefail
"$@"
code=$?
if [ "$code" -eq 5 ]; then
    echo "no test needs an outside server yet"
    exit 0
fi
exit "$code"
