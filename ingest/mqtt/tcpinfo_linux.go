package mqtt

import "syscall"

const tcpInfo = syscall.TCP_INFO
