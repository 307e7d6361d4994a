#!/bin/sh
# Process 1 of the virtual machine: makes it a place to run programs in, and ends with the agent.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
mkdir -p /dev/pts /dev/shm /dev/virtio-ports
mount -t devpts pts /dev/pts
ln -s /proc/self/fd /dev/fd
hostname -F /etc/hostname
ip link set lo up
while read -r module; do
    insmod "$module" || echo "init: no $module"
done </modules/list
if [ -x /lib/systemd/systemd ]; then
    exec /lib/systemd/systemd --unit=guest-agent.service --show-status=0
fi
python3 -I /usr/lib/guest/agent.py
echo "init: the agent ended with status $?"
poweroff -f
