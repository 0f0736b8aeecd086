#!/bin/busybox sh
# PID 1 of the default guest. Each process costs 5-10 ms of a boot without hardware acceleration: so mounts come from
# /etc/fstab at once, and what the shell can do by itself it does.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin HOME=/root LANG=C.UTF-8
agent=/dev/virtio-ports/org.qemu.guest_agent.0

mount -t devtmpfs dev /dev
mkdir /dev/pts /dev/shm /dev/virtio-ports
mount -a
cp -a /usr/lib/vmwrapper/dev/* /dev/

# In the order that dependencies ask for, which the builder put into the names.
for module in /usr/lib/vmwrapper/modules/*; do
	insmod "$module"
done
# Freed memory goes back to the host in pieces from one page on, instead of 2 MiB on. Linux 6.1 ignores that on its
# command line: the balloon's driver, when loaded, overwrites it.
echo 0 >/sys/module/page_reporting/parameters/page_reporting_order

ip link set lo up
echo guest >/proc/sys/kernel/hostname

# The host first adds all ports and then names them, after the driver has loaded; a console never gets a name.
for try in 1 2 3 4 5 6 7 8 9 10; do
	unnamed=
	for port in /sys/class/virtio-ports/*; do
		if read -r name <"$port/name"; then
			[ -e "/dev/virtio-ports/$name" ] || ln -s "../${port##*/}" "/dev/virtio-ports/$name"
		else
			unnamed=yes
		fi
	done 2>/dev/null
	[ -e "$agent" ] && [ -z "$unnamed" ] && break
	sleep 0.1
done

# While it waits for the agent, the shell also reaps the orphans that become PID 1's.
while :; do
	qemu-ga -m virtio-serial -p "$agent" -t /run </dev/null
	sleep 1
done
