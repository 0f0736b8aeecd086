#!/bin/sh
# Makes a disk image with Debian for jobs in VirtualBox: as root,
#   sh debian-image.sh debian.vdi [OPTION OF MMDEBSTRAP | MIRROR]...
# Needs mmdebstrap, e2fsprogs, grub-common, grub-pc-bin and qemu-utils. RELEASE and PACKAGES may be set to others.
set -eu
image=$1
shift
release=${RELEASE:-bookworm}
packages=linux-image-amd64,initramfs-tools,systemd-sysv,udev,kmod,e2fsprogs,mount,xxhash${PACKAGES:+,$PACKAGES}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM HUP

# What vmwrapper asks is done by an agent, which the guest finds in the first of two shared folders.
cat >"$work/agent" <<'END'
#!/bin/sh
set -e
export home=/run/.vmwrapper-agent in=/run/.vmwrapper-agent/in out=/run/.vmwrapper-agent/out
umask 077
mkdir -p $in $out
mountpoint -q $in || mount -t vboxsf -o ro vmwrapper-requests $in
mountpoint -q $out || mount -t vboxsf vmwrapper-answers $out
cp $in/agent.sh $home/
exec sh $home/agent.sh
END
cat >"$work/unit" <<'END'
[Unit]
Description=Does what vmwrapper asks
ConditionVirtualization=oracle
StartLimitIntervalSec=0

[Service]
ExecStart=/usr/local/sbin/vmwrapper-agent
KillMode=process
Restart=on-failure
RestartSec=1

[Install]
WantedBy=multi-user.target
END

echo '/dev/sda1 / ext4 noatime 0 1' >"$work/fstab"
mmdebstrap --variant=minbase --include="$packages" \
    --customize-hook="copy-in $work/fstab /etc" \
    --customize-hook="upload $work/agent /usr/local/sbin/vmwrapper-agent" \
    --customize-hook="upload $work/unit /etc/systemd/system/vmwrapper-agent.service" \
    --customize-hook='chmod 755 "$1/usr/local/sbin/vmwrapper-agent"' \
    --customize-hook='chroot "$1" systemctl --quiet enable vmwrapper-agent' \
    --customize-hook='chroot "$1" useradd --create-home job' \
    --customize-hook='echo debian >"$1/etc/hostname"' \
    "$release" "$work/root" "$@"

# A disk with one partition from its first MiB on, and GRUB in front of that.
size_mib=$(($(du -sm "$work/root" | cut -f1) * 5 / 4 + 512))
truncate -s "${size_mib}M" "$work/partition"
mke2fs -q -F -t ext4 -d "$work/root" "$work/partition"
cat >"$work/grub.cfg" <<'END'
linux (hd0,msdos1)/vmlinuz root=/dev/sda1 ro quiet console=tty0 console=ttyS0
initrd (hd0,msdos1)/initrd.img
boot
END
grub-mkimage -O i386-pc -p /boot -c "$work/grub.cfg" -o "$work/core.img" biosdisk part_msdos ext2 linux
{
    head -c 446 /usr/lib/grub/i386-pc/boot.img
    # Bootable, of type 83, from sector 2048 on: the numbers are little-endian.
    printf '\200\000\000\000\203\000\000\000\000\010\000\000'
    sectors=$((size_mib * 2048))
    for shift in 0 8 16 24; do
        printf "\\$(printf %03o $((sectors >> shift & 255)))"
    done
    head -c 48 /dev/zero
    printf '\125\252'
    cat "$work/core.img"
} >"$work/disk"
truncate -s 1M "$work/disk"
cat "$work/partition" >>"$work/disk"
qemu-img convert -O vdi -f raw "$work/disk" "$image"
