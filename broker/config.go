package broker

import "time"

// Config is everything a broker can be told. Names in the tags are the names
// of the settings in the file, on the command line and in the environment.
type Config struct {
	Node      NodeConfig      `yaml:"node"`
	Listeners ListenersConfig `yaml:"listeners"`
	Cluster   ClusterConfig   `yaml:"cluster"`
	Topics    TopicsConfig    `yaml:"topics"`
	Limits    LimitsConfig    `yaml:"limits"`
	// Insecure permits listeners beyond loopback without TLS.
	Insecure bool `yaml:"insecure"`
	// ShutdownTimeout bounds a graceful stop.
	ShutdownTimeout time.Duration `yaml:"shutdown_timeout"`
}

// NodeConfig says who this broker is.
type NodeConfig struct {
	// ID is "auto": the cluster hands out ids. Other values are refused.
	ID      string `yaml:"id"`
	Rack    string `yaml:"rack"`
	DataDir string `yaml:"data_dir"`
}

// ListenersConfig says where the doors are.
type ListenersConfig struct {
	Kafka    ListenerConfig `yaml:"kafka"` // no listener yet
	GRPC     ListenerConfig `yaml:"grpc"`
	Internal ListenerConfig `yaml:"internal"` // no listener yet
	Gossip   ListenerConfig `yaml:"gossip"`   // no listener yet
	Admin    ListenerConfig `yaml:"admin"`
}

// ListenerConfig is one listener.
type ListenerConfig struct {
	Address string `yaml:"address"`
	// Advertised is what clients are told; empty: the address bound.
	Advertised string `yaml:"advertised"`
}

// ClusterConfig says how the broker finds its cluster.
type ClusterConfig struct {
	Name            string   `yaml:"name"`
	BootstrapExpect int      `yaml:"bootstrap_expect"`
	Join            []string `yaml:"join"`
	// CoordinatorGroups is how many coord/N groups a new cluster gets, for good.
	CoordinatorGroups int `yaml:"coordinator_groups"`
}

// TopicsConfig says what new topics get unless they say otherwise.
type TopicsConfig struct {
	AutoCreate        bool  `yaml:"auto_create"` // accepted as false only
	Partitions        int32 `yaml:"partitions"`
	ReplicationFactor int16 `yaml:"replication_factor"` // 0: min(3, brokers)
}

// LimitsConfig bounds what the broker takes on.
type LimitsConfig struct {
	Partitions    int32 `yaml:"partitions"`      // replicas hosted at most
	InFlightBytes int64 `yaml:"in_flight_bytes"` // batches that wait for their answer
	TailBytes     int64 `yaml:"tail_bytes"`      // memory of all logs' tails
	PoolBytes     int64 `yaml:"pool_bytes"`      // segments kept for reuse; 0: none
	Connections   int   `yaml:"connections"`     // per door
}

// DefaultConfig is a broker on loopback with its data in ./tidemark-data.
func DefaultConfig() Config {
	return Config{
		Node: NodeConfig{ID: "auto", DataDir: "./tidemark-data"},
		Listeners: ListenersConfig{
			Kafka:    ListenerConfig{Address: "127.0.0.1:9092"},
			GRPC:     ListenerConfig{Address: "127.0.0.1:9093"},
			Internal: ListenerConfig{Address: "127.0.0.1:9094"},
			Gossip:   ListenerConfig{Address: "127.0.0.1:7946"},
			Admin:    ListenerConfig{Address: "127.0.0.1:9644"},
		},
		Cluster:         ClusterConfig{BootstrapExpect: 1, CoordinatorGroups: 8},
		Topics:          TopicsConfig{Partitions: 1},
		Limits:          LimitsConfig{Partitions: 4000, InFlightBytes: 64 << 20, TailBytes: 64 << 20, PoolBytes: 1 << 30, Connections: 4096},
		ShutdownTimeout: 30 * time.Second,
	}
}
