//go:build !linux

package cutfs

// Mount is a file system in front of the kernel.
type Mount struct{}

// Available says that only Linux can mount a cutfs.
func Available() error { return ErrNoMount }

// Mount fails.
func (f *FS) Mount(string) (*Mount, error) { return nil, ErrNoMount }

// Dir is nowhere.
func (m *Mount) Dir() string { return "" }

// Unmount does nothing.
func (m *Mount) Unmount() error { return nil }

// Detach does nothing.
func Detach(string) error { return nil }

// Sweep does nothing.
func Sweep() error { return nil }
