#!/usr/bin/env bash
# What the slow tests of launching need besides iproute2 and util-linux, on Debian or Ubuntu, as root.
# No daemon is started: the tests start their own, in namespaces.
set -euo pipefail
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    trap 'rm -f "$policy"' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -y -q --no-install-recommends iproute2 openssh-server openssh-client pdsh \
    slurm-wlm munge
