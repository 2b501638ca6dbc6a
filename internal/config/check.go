package config

import (
	"net"
	"net/netip"
	"path/filepath"
)

// check finds what is wrong between settings that are right one by one.
func (c *Config) check(l *Loaded, problems *problems) {
	at := func(key string) string { return l.Origin(key) }
	for _, n := range []struct {
		name string
		l    Listener
	}{
		{"kafka", c.Listeners.Kafka}, {"grpc", c.Listeners.GRPC},
		{"internal", c.Listeners.Internal}, {"admin", c.Listeners.Admin},
		{"gossip", Listener{Address: c.Listeners.Gossip.Address, Advertised: c.Listeners.Gossip.Advertised}},
	} {
		key := "listeners." + n.name
		c.checkListener(key, n.l, at, problems)
	}
	if c.Topics.AutoCreate {
		problems.add("topics.auto_create", "got true, want false: topics are created by name", at("topics.auto_create"))
	}
	if c.Listeners.GRPC.Address == "" {
		problems.add("listeners.grpc.address", "must not be empty: clients need it", at("listeners.grpc.address"))
	}
	if k, f := c.Listeners.Gossip.EncryptKey, c.Listeners.Gossip.EncryptKeyFile; k.Reveal() != "" && f != "" {
		problems.add("listeners.gossip.encrypt_key", "is given twice: as text and as encrypt_key_file", at("listeners.gossip.encrypt_key"))
	}
	if filepath.Clean(c.Node.DataDir) == "/" {
		problems.add("node.data_dir", "must not be the root directory", at("node.data_dir"))
	}
}

func (c *Config) checkListener(key string, l Listener, at func(string) string, problems *problems) {
	if wildcard(l.Advertised) {
		problems.add(key+".advertised", "must be an address that others can dial, got "+l.Advertised, at(key+".advertised"))
	}
	if (l.TLS.CertFile == "") != (l.TLS.KeyFile == "") {
		problems.add(key+".tls", "needs cert_file and key_file together", at(key+".tls.cert_file"))
	}
	if l.TLS.Mode == "off" && l.TLS.Mode != "" && !c.Insecure && l.Address != "" && !loopback(l.Address) {
		problems.add(key+".address", "listens beyond loopback ("+l.Address+") without TLS; bind loopback, or say insecure: true", at(key+".address"))
	}
	if key != "listeners.grpc" && key != "listeners.admin" {
		return // nothing listens there yet, so nothing is less safe than it was asked to be
	}
	if l.TLS.Mode != "" && l.TLS.Mode != "off" {
		problems.add(key+".tls.mode", "got "+l.TLS.Mode+", want off: this version has no TLS yet", at(key+".tls.mode"))
	}
	if len(l.Auth) > 0 {
		problems.add(key+".auth", "want nothing: this version does not authenticate clients yet", at(key+".auth"))
	}
}

func wildcard(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return host == "" || err == nil && ip.IsUnspecified()
}

func loopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}
