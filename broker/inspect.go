package broker

import (
	"fmt"
	"path/filepath"

	"github.com/tidemarkhq/tidemark/internal/fsx"
)

// CheckIdentity reads the identity of a data directory without changing anything.
func CheckIdentity(fsys fsx.FS, dir string) (broker, cluster string, err error) {
	name := filepath.Join(dir, identityFile)
	b, err := fsx.ReadFile(fsys, name, smallFile)
	if err != nil {
		return "", "", fmt.Errorf("identity: %w", err)
	}
	id, err := parseIdentity(string(b))
	if err != nil {
		return "", "", fmt.Errorf("%s: %w", name, err)
	}
	return id.broker.String(), id.cluster.String(), nil
}
