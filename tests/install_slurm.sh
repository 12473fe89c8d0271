#!/usr/bin/env bash
# Debian's Slurm, for the tests marked `slurm`; needs root or sudo. Nothing is started and no system service is left running.
set -euo pipefail
cd "$(dirname "$0")/.."
as_root=(); [ "$(id -u)" = 0 ] || as_root=(sudo)
"${as_root[@]}" bash launch/slurm_local.sh install
command -v ip >/dev/null || PATH="$PATH:/usr/sbin:/sbin" command -v ip >/dev/null ||
  DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq --no-install-recommends iproute2 >/dev/null
