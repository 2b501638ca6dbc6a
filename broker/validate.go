package broker

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
)

// Validate names everything that is wrong, all at once.
func (c Config) Validate() error {
	var problems []error
	wrong := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	if c.Node.ID != "auto" {
		wrong("node.id: got %q, want \"auto\": the cluster hands out ids", c.Node.ID)
	}
	if c.Node.DataDir == "" {
		wrong("node.data_dir: is empty; name a directory")
	}
	if c.Cluster.BootstrapExpect != 1 {
		wrong("cluster.bootstrap_expect: got %d, want 1: clusters of several brokers are not in this version", c.Cluster.BootstrapExpect)
	}
	if others := c.joinOthers(); len(others) > 0 {
		wrong("cluster.join: got %q, want nothing but this broker's own gossip address: this version would found a cluster of its own instead of joining", others)
	}
	if c.Topics.AutoCreate {
		wrong("topics.auto_create: got true, want false: topics are created by name")
	}
	for _, n := range []struct {
		key       string
		got       int64
		low, high int64
	}{
		{"cluster.coordinator_groups", int64(c.Cluster.CoordinatorGroups), 1, 64},
		{"topics.partitions", int64(c.Topics.Partitions), 1, 10_000},
		{"topics.replication_factor", int64(c.Topics.ReplicationFactor), 0, 9},
		{"limits.partitions", int64(c.Limits.Partitions), 1, 100_000},
		{"limits.in_flight_bytes", c.Limits.InFlightBytes, 1 << 20, 1 << 40},
		{"limits.tail_bytes", c.Limits.TailBytes, 1 << 20, 1 << 40},
		{"limits.pool_bytes", c.Limits.PoolBytes, 0, 1 << 50},
		{"limits.connections", int64(c.Limits.Connections), 1, 1_000_000},
	} {
		if n.got < n.low || n.got > n.high {
			wrong("%s: got %d, want %d to %d", n.key, n.got, n.low, n.high)
		}
	}
	if c.ShutdownTimeout <= 0 {
		wrong("shutdown_timeout: got %v, want more than 0", c.ShutdownTimeout)
	}
	problems = append(problems, c.checkListener("listeners.grpc", c.Listeners.GRPC, true)...)
	problems = append(problems, c.checkListener("listeners.admin", c.Listeners.Admin, false)...)
	if a := c.Listeners.GRPC.Address; a == c.Listeners.Admin.Address && port(a) != 0 {
		wrong("listeners.admin.address: %s is listeners.grpc.address too; give each its own port", a)
	}
	return errors.Join(problems...)
}

// joinOthers is whom cluster.join names besides this broker: a list that all brokers share names
// each of them too.
func (c Config) joinOthers() []string {
	g := c.Listeners.Gossip
	return slices.DeleteFunc(slices.Clone(c.Cluster.Join), func(a string) bool { return a == g.Address || a == g.Advertised })
}

func (c Config) checkListener(key string, l ListenerConfig, required bool) (problems []error) {
	if l.Address == "" {
		if required {
			return []error{fmt.Errorf("%s.address: is empty; name an address such as 127.0.0.1:9093", key)}
		}
		return nil
	}
	if port(l.Address) < 0 {
		return []error{fmt.Errorf("%s.address: got %q, want host:port", key, l.Address)}
	}
	if !onLoopback(l.Address) && !c.Insecure {
		problems = append(problems, fmt.Errorf("%s.address: %s is open to others without TLS; listen on 127.0.0.1, or say insecure: true", key, l.Address))
	}
	if l.Advertised == "" {
		return problems
	}
	host, _, err := net.SplitHostPort(l.Advertised)
	if ip, ipErr := netip.ParseAddr(host); err != nil || port(l.Advertised) <= 0 || host == "" || ipErr == nil && ip.IsUnspecified() {
		problems = append(problems, fmt.Errorf("%s.advertised: got %q, want host:port that others can dial", key, l.Advertised))
	}
	return problems
}

// port is the port of an address, -1 where there is none.
func port(address string) int {
	_, p, err := net.SplitHostPort(address)
	if err != nil {
		return -1
	}
	n, err := strconv.ParseUint(p, 10, 16)
	if err != nil {
		return -1
	}
	return int(n)
}

func onLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}
