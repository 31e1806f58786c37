#!/usr/bin/env bash
# Installs the system packages that a make target needs, or says exactly which are missing and why.
#
#   scripts/system-packages.sh setup|demo|test|bench
#
# Nothing is installed that is there already. As root, or where sudo asks for no password, missing packages are
# installed with apt-get; everywhere else they are named, and the target fails.
set -euo pipefail

target=${1:?usage: system-packages.sh setup|demo|test|bench}
python=${PYTHON:-python3}
PATH=$PATH:/usr/sbin:/sbin # daemons and mount helpers are not on an ordinary user's path

missing=() # package names
reasons=() # "package: why"

# need PACKAGE WHY CHECK...: PACKAGE is missing unless the command CHECK succeeds.
need() {
    local package=$1 why=$2
    shift 2
    if ! "$@" >/dev/null 2>&1; then
        missing+=("$package")
        reasons+=("$package: $why")
    fi
}

have() { command -v "$1"; }

case $target in
setup)
    need python3-venv "creates the virtual environment" "$python" -c 'import ensurepip, venv'
    ;;
demo)
    need git "the quick start works on a repository" have git
    # Root mounts by the mount(2) system call; everybody else needs the set-uid helper.
    [ "$(id -u)" -eq 0 ] || need fuse3 "mounts as an ordinary user" have fusermount3
    ;;
test)
    need git "tests work on a repository in a mount" have git
    need fuse3 "tests mount as an ordinary user" have fusermount3
    need chromium "tests use the panel in JupyterLab" have chromium
    need chromium-driver "drives that browser" have chromedriver
    ;;
bench)
    need git "a workload is a repository's status" have git
    need fuse3 "mounts as an ordinary user, and sshfs's own library" have fusermount3
    need sshfs "the file system to compare with" have sshfs
    need openssh-server "sshfs's other end" have sshd
    ;;
*)
    echo "system-packages.sh: no such target: $target" >&2
    exit 2
    ;;
esac

as_root=()
if [ "$(id -u)" -ne 0 ]; then
    as_root=(sudo -n)
fi

# May we become root without asking anybody?
may_install() {
    command -v apt-get >/dev/null && { [ "$(id -u)" -eq 0 ] || sudo -n true 2>/dev/null; }
}

apt() {
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120 "$@"
}

# Mirrors have bad moments; what fails three times is not one of them.
retry() {
    local try
    for try in 1 2 3; do
        "$@" && return
        echo "try $try failed: $*" >&2
        sleep "$try"
    done
    return 1
}

if [ ${#missing[@]} -gt 0 ]; then
    printf 'missing %s\n' "${reasons[@]}" >&2
    if ! may_install; then
        echo "Ask whoever may to run:  apt-get install ${missing[*]}" >&2
        exit 1
    fi
    retry apt update
    retry apt install -y --no-install-recommends "${missing[@]}" </dev/null >/dev/null
fi

if [ "$target" = setup ]; then
    exit 0
fi

# The device that every FUSE mount begins with. A container may lack the node although the kernel has FUSE.
if [ ! -c /dev/fuse ] && [ "$(id -u)" -eq 0 ]; then
    { modprobe fuse || mknod -m 0666 /dev/fuse c 10 229; } 2>/dev/null || true
fi
problem=
if [ ! -c /dev/fuse ]; then
    problem="there is no /dev/fuse: the kernel has no FUSE, or this container was not given the device (--device /dev/fuse)"
elif [ "$(id -u)" -eq 0 ] && ! (exec 3<>/dev/fuse) 2>/dev/null; then
    problem="/dev/fuse cannot be opened: this container was not allowed the device (--device /dev/fuse --cap-add SYS_ADMIN)"
fi
if [ -n "$problem" ]; then
    echo "$problem" >&2
    if [ "$target" = test ]; then
        echo "Tests that mount will be skipped; on CI that is a failure." >&2
    else
        exit 1
    fi
fi
