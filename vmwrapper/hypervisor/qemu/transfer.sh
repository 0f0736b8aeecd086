# Moves files through a virtio-serial port, as transfer.py says. Read by the guest's sh from its standard input:
#   receive NONCE DIRECTORY BYTES NAME…   a tar comes from the host, and makes the files NAME, of BYTES in all
#   send NONCE DIRECTORY NAME…            those NAMEs that are regular files go to the host
# The exit statuses: 4 a file changed while it was sent, 1 anything else.
# Both ends say NONCE first, since something older may still be in the port. Checksums are of files read back from the
# disk, where a copy of the stream would have to pass through a slow `tee`.
set -u
umask 022
verb=$1 nonce=$2 directory=$3
shift 3
PATH=$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
port=/dev/virtio-ports/org.vmwrapper.data
# A transfer that failed holds the port until the host has read what was left in it.
tries=600
until (exec 3<>$port) 2>/dev/null || [ $((tries -= 1)) -eq 0 ]; do sleep 0.1; done
exec 3<>$port
cd "$directory" || exit 1

# The faster checksum takes 40 ms to start without acceleration, as long as the slower one takes for 1 MiB.
choose_checksum() {
    if [ "$1" -gt 1048576 ] && command -v xxhsum >/dev/null; then
        algorithm=xxh64 checksum="xxhsum -H1"
    else
        algorithm=sha256 checksum=sha256sum
    fi
    printf '%s %s\n' "$nonce" "$algorithm" >&3
}

# tar stops reading early, so that somebody must read on.
receive() {
    choose_checksum "$1"
    shift
    while IFS= read -r line <&3 && [ "${line#*"$nonce"}" = "$line" ]; do :; done
    blocks=${line##* }
    dd bs=64k iflag=fullblock count="$blocks" <&3 2>/dev/null | {
        tar -xf -
        status=$?
        cat >/dev/null
        exit $status
    } || exit 1
    cat "$@" | $checksum
}

# Says of each name what it is, of each regular file its mode, size and time of change, and then all their contents.
send() {
    kinds='' regular='' some='' number=0 total=0
    for name in "$@"; do
        number=$((number + 1))
        find_kind "$name"
        kinds=$kinds$kind
        [ $kind = f ] && some="$some \"\${$number}\""
        if [ ${#some} -gt 2000 ]; then # growing one long string takes the square of its length
            regular=$regular$some some=''
        fi
    done
    eval "set -- $regular$some"
    facts=$(facts "$@")
    for fact in $facts; do
        size=${fact#*:}
        total=$((total + ${size%:*}))
    done
    choose_checksum $total
    announced_with "$@" | dd bs=64k iflag=fullblock >&3 2>/dev/null
    sum=$(announced_with "$@" | $checksum)
    printf '%s %s\n' "$nonce" "${sum%% *}" >&3
    [ "$facts" = "$(facts "$@")" ] || exit 4
}

announced_with() {
    printf '%s\n' "$kinds" $facts
    cat /dev/null "$@"
}

find_kind() {
    if [ -L "$1" ]; then
        kind=l
    elif [ -f "$1" ]; then
        kind=f
    elif [ -d "$1" ]; then
        kind=d
    elif [ -e "$1" ]; then
        kind=s
    else
        kind=-
    fi
}

facts() {
    [ $# -eq 0 ] || stat -c '%f:%s:%Y' "$@"
}

"$verb" "$@"
