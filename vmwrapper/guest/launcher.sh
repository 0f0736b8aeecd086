# Runs one program in the guest, detached, and keeps what is known of it in files. Read by the guest's sh from its standard
# input. What is read while the program runs is written beside and moved into place: all of it is there, or nothing.
#   prepare DATADIR USER SCRATCH   make the scratch disk (a block device's serial number, or "none") and the user
#   install, uninstall             as packages.sh says, which is in front of this then
#   start DATADIR USER PROGRAM COMMAND   COMMAND is a shell script that becomes the PROGRAM
#   alive                          succeeds while somebody waits for the program's end, or has written it down
# In /run/vmwrapper: command, supervisor (a process number), exit (status, user and system CPU time in seconds), stderr (its
# end, once the program has ended).
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
    if [ "$scratch" = none ]; then
        mkdir -p "$home/scratch/packages" "$datadir" || exit 1
    else
        mkdir -p "$home/scratch" "$datadir" || exit 1
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
        [ -e "$disk/device/vpd_pg80" ] && serial=$(tail -c +5 "$disk/device/vpd_pg80" | tr -d '\0 ') # an ATA disk's
        [ "$serial" = 6000c295766d777261707065722d7363 ] && serial=$scratch # VMware's have no other kind
        [ "$serial" = "$scratch" ] && break
        disk=
    done
    [ -n "$disk" ] || fail 1 "no disk with the serial number $scratch"
    read -r sectors <"$disk/size"
    inode_bytes=$((sectors / 256))
    [ $inode_bytes -lt 65536 ] && inode_bytes=65536
    said=$(mke2fs -F -m 0 -i $inode_bytes "/dev/${disk##*/}" 2>&1) || fail 1 "mke2fs: $said"
    mount -t ext4 -o noatime "/dev/${disk##*/}" "$home/scratch" || exit 1
    mkdir "$home/scratch/data" "$home/scratch/packages"
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
    (set -C; : >"$home/started") 2>/dev/null || fail 1 "the program was started before"
    printf '%s' "$4" >"$home/command"
    chmod +x "$datadir/$3"
    [ "$user" = root ] || chown -R "$user" "$datadir"
    # By exec, since a shell that redirects a function keeps the descriptors from before, and our caller waits for those.
    (exec </dev/null >/dev/null 2>&1; supervise) &
    echo $! >"$home/supervisor" # nobody looks for it yet
}

alive() {
    read -r supervisor <"$home/supervisor" && kill -0 "$supervisor" 2>/dev/null || [ -e "$home/exit" ]
}

# The program gets a session of its own, and where there are control groups, one of these: so all that it leaves running
# can be ended. Of its standard error only the end is kept, however much it says.
supervise() {
    if [ "$user" = root ]; then
        set -- setsid sh "$home/command"
    else
        set -- setsid su -s /bin/sh "$user" -c ". $home/command"
    fi
    group=/sys/fs/cgroup/vmwrapper
    mkdir "$group"
    mkfifo -m 622 "$home/stderr.pipe" # the user may open it once more, as /dev/stderr
    (tail -c 65536 <"$home/stderr.pipe" >"$home/stderr.new"; mv "$home/stderr.new" "$home/stderr") &
    (echo 0 >"$group/cgroup.procs"; exec "$@" 2>"$home/stderr.pipe") &
    pid=$!
    wait $pid
    status=$?
    times >"$home/times"
    if [ -e "$group/cgroup.kill" ]; then
        echo 1 >"$group/cgroup.kill"
    else
        kill -KILL "-$pid"
    fi
    tries=20 # what got away may still hold the pipe
    until [ -e "$home/stderr" ] || [ $((tries -= 1)) -eq 0 ]; do sleep 0.1; done
    { read -r ours; read -r user_s system_s; } <"$home/times"
    echo "status=$status user=$user_s system=$system_s" >"$home/exit.new"
    mv "$home/exit.new" "$home/exit"
}

"$verb" "$@"
