package cli

import (
	"net"
	"strings"
)

// notifySystemd tells the service manager about the state, where there is one
// (sd_notify(3)). A manager that cannot be told does not keep a broker from serving.
func notifySystemd(getenv func(string) string, state string) {
	name := getenv("NOTIFY_SOCKET")
	if name == "" {
		return
	}
	if strings.HasPrefix(name, "@") {
		name = "\x00" + name[1:] // an abstract socket
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return
	}
	defer conn.Close()
	_, _ = conn.Write([]byte(state))
}
