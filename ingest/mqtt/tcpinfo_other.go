//go:build !linux

package mqtt

const tcpInfo = 0 // not known
