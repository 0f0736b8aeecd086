# Moves files through a virtio-serial port and the window, as transfer.py and window.py say. Read by the guest's sh from
# its standard input:
#   receive NONCE DIRECTORY SMALL LARGE NAME…   the files NAME come from the host, so many bytes in small and large ones
#   send NONCE DIRECTORY NAME…                  those NAMEs that are regular files go to the host
# The exit statuses: 4 a file changed while it was sent, 1 anything else.
# Both ends say NONCE first, since something older may still be in the port. Checksums are of files read back from the
# disk, where a copy of the stream would have to pass through a slow `tee`.
set -u
umask 022
verb=$1 nonce=$2 directory=$3
shift 3
PATH=$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
port=/dev/virtio-ports/org.vmwrapper.data
window='' looked=''
# A transfer that failed holds the port until the host has read what was left in it.
tries=600
until (exec 3<>$port) 2>/dev/null || [ $((tries -= 1)) -eq 0 ]; do sleep 0.1; done
exec 3<>$port
cd "$directory" || exit 1

# The faster checksum takes 40 ms to start without acceleration, as long as the slower one takes for 1 MiB.
greet() {
    if [ "$1" -gt 1048576 ] && command -v xxhsum >/dev/null; then
        algorithm=xxh64 checksum="xxhsum -H1"
    else
        algorithm=sha256 checksum=sha256sum
    fi
    printf '%s\n' "$nonce $algorithm${window:+ window}" >&3
}

# Whether a file of this size crosses through the window.
crosses_window() {
    [ "$1" -ge 8388608 ] || return
    [ -n "$looked" ] || find_window
    [ -n "$window" ]
}

# By its serial number, and only where dd can pass by the page cache.
find_window() {
    looked=yes
    command -v truncate >/dev/null || return
    for disk in /sys/block/*; do
        serial=
        [ -e "$disk/serial" ] && read -r serial <"$disk/serial"
        window=/dev/${disk##*/}
        [ "$serial" = vmwrapper-window ] && copy if="$window" of="$window" bs=4096 count=1 && return
    done
    window=
}

copy() {
    dd "$@" conv=notrunc,sync iflag=direct oflag=direct 2>/dev/null
}

# tar stops reading early, so that somebody must read on.
receive() {
    if crosses_window "$2"; then greet "$1"; else greet $(($1 + $2)); fi
    shift 2
    while IFS= read -r line <&3 && [ "${line#*"$nonce"}" = "$line" ]; do :; done
    blocks=${line##* }
    dd bs=64k iflag=fullblock count="$blocks" <&3 2>/dev/null | {
        tar -xf -
        status=$?
        cat >/dev/null
        exit $status
    } || exit 1
    cat "$@" | $checksum
    serve "$@"
}

# Says of each name what it is, of each regular file its mode, size and time of change, and then their contents.
send() {
    kinds='' picked='' some='' number=0
    for name in "$@"; do
        number=$((number + 1))
        find_kind "$name"
        kinds=$kinds$kind
        [ $kind = f ] && pick $number
    done
    eval "set -- $picked$some"
    facts=$(facts "$@")
    picked='' some='' number=0 total=0
    for fact in $facts; do
        number=$((number + 1)) size=${fact#*:}
        size=${size%:*}
        if ! crosses_window "$size"; then
            total=$((total + size))
            pick $number
        fi
    done
    greet $total
    announced_with "$@" | dd bs=64k iflag=fullblock >&3 2>/dev/null
    sum=$(announced_with "$@" | $checksum)
    printf '%s %s\n' "$nonce" "${sum%% *}" >&3
    serve "$@"
    status=$?
    [ "$facts" = "$(facts "$@")" ] || exit 4
    exit $status
}

# Growing one long string takes the square of its length.
pick() {
    some="$some \"\${$1}\""
    [ ${#some} -le 2000 ] || picked=$picked$some some=
}

announced_with() {
    printf '%s\n' "$kinds" $facts
    eval "cat /dev/null $picked$some"
}

# Copies parts of the files through the window until the host has no more of them.
serve() {
    [ -n "$window" ] || return 0
    while read -r said verb number bytes count there here <&3; do
        [ "$said" = "$nonce" ] || continue
        [ "$verb" = end ] && return
        eval "name=\${$number}"
        case $verb in
        in) copy_either iflag=direct if="$window" of="$name" skip="$there" seek="$here" || return ;;
        out) copy_either oflag=direct if="$name" of="$window" skip="$here" seek="$there" || return ;;
        cut) truncate -s "$bytes" "$name" || return ;;
        esac
        [ "$verb" = cut ] || printf '%s\n' "$nonce" >&3
    done
    return 1
}

# The page cache of a file is passed by where its file system can do without; the window's always.
copy_either() {
    only=$1
    shift
    copy "$@" bs="$bytes" count="$count" && return
    said=$(dd "$@" bs="$bytes" count="$count" conv=notrunc,sync "$only" 2>&1) && return
    echo "$said" >&2
    return 1
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
