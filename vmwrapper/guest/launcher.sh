# Runs one program in the guest, detached, and keeps what is known of it in files. Read by the guest's sh from its standard
# input; every file is written beside and moved into place, so that a reader sees all of it or nothing.
#   prepare DATADIR USER SCRATCH   make the scratch disk (a block device's serial number, or "none") and the user
#   start DATADIR USER PROGRAM COMMAND   COMMAND is a shell script that becomes the PROGRAM
#   alive                          succeeds while somebody waits for the program's end, or has written it down
# In /run/vmwrapper: command, supervisor and pid (process numbers), exit (status, user and system CPU time in seconds),
# scratch/stdout, scratch/stderr.
set -u
umask 022
PATH=$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
home=/run/vmwrapper
verb=$1
shift

fail() {
    echo "$2" >&2
    exit "$1"
}

# The exit statuses of `prepare`: 67 no such user, 1 anything else. Without acceleration each process costs 5-10 ms.
prepare() {
    datadir=$1 user=$2 scratch=$3
    mkdir -p "$home/scratch" "$datadir" || exit 1
    if [ "$scratch" = none ]; then
        mount -t tmpfs tmpfs "$home/scratch" || exit 1 # what is said too much does not fill the place of the record
    else
        mount_scratch
    fi
    [ "$user" = root ] || make_user
    read -r boot_id </proc/sys/kernel/random/boot_id
    read -r kernel </proc/sys/kernel/osrelease
    echo "boot_id=$boot_id"
    echo "kernel=$kernel"
}

# One inode for 64 KiB, and at most 131,072, keep making the file system short: 0.1 s for 1 GiB.
mount_scratch() {
    for disk in /sys/block/*; do
        serial=
        [ -e "$disk/serial" ] && read -r serial <"$disk/serial"
        [ "$serial" = "$scratch" ] && break
        disk=
    done
    [ -n "$disk" ] || fail 1 "no disk with the serial number $scratch"
    read -r sectors <"$disk/size"
    inode_bytes=$((sectors / 256))
    [ $inode_bytes -lt 65536 ] && inode_bytes=65536
    said=$(mke2fs -F -m 0 -i $inode_bytes "/dev/${disk##*/}" 2>&1) || fail 1 "mke2fs: $said"
    mount -t ext4 -o noatime "/dev/${disk##*/}" "$home/scratch" || exit 1
    mkdir "$home/scratch/data"
    mount -o bind "$home/scratch/data" "$datadir" || exit 1
}

make_user() {
    if ! id -u "$user" >/dev/null 2>&1; then
        [ -e /etc/vmwrapper-guest ] || fail 67 "the guest has no user $user"
        echo "$user:x:1000:1000::$datadir:/bin/sh" >>/etc/passwd
        echo "$user:x:1000:" >>/etc/group
    fi
}

start() {
    datadir=$1 user=$2
    mkdir "$home/started" 2>/dev/null || fail 1 "the program was started before"
    printf '%s' "$4" >"$home/command"
    chmod +x "$datadir/$3"
    [ "$user" = root ] || chown -R "$user" "$datadir"
    # By exec, since a shell that redirects a function keeps the descriptors from before, and our caller waits for those.
    (exec </dev/null >/dev/null 2>&1; supervise) &
    keep supervisor $!
}

alive() {
    read -r supervisor <"$home/supervisor" && kill -0 "$supervisor" 2>/dev/null || [ -e "$home/exit" ]
}

keep() {
    echo "$2" >"$home/$1.new" && mv "$home/$1.new" "$home/$1"
}

# The program gets a session of its own, and with it a process group that can be ended as one.
supervise() {
    if [ "$user" = root ]; then
        set -- setsid sh "$home/command"
    else
        set -- setsid su -s /bin/sh "$user" -c ". $home/command"
    fi
    "$@" >"$home/scratch/stdout" 2>"$home/scratch/stderr" &
    keep pid $!
    wait $!
    status=$?
    times >"$home/times"
    read -r pid <"$home/pid" && kill -KILL -- "-$pid" 2>/dev/null
    { read -r ours; read -r user_s system_s; } <"$home/times"
    keep exit "status=$status user=$user_s system=$system_s"
}

"$verb" "$@"
