#!/bin/sh
# For tcpserver (ucspi-tcp): run this from a supervisor (runit, daemontools, s6), with options for
# socks-inetd as its arguments. The log is standard error. With s6-networking the line is
#     exec s6-tcpserver -c 512 -C 256 127.0.0.1 1080 socks-inetd "$@"
exec tcpserver -HRD -l 0 -c 512 -u 65534 -g 65534 127.0.0.1 1080 /usr/local/bin/socks-inetd "$@"
