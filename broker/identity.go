package broker

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/hashicorp/raft"

	"github.com/tidemarkhq/tidemark/broker/controller"
	"github.com/tidemarkhq/tidemark/internal/fsx"
)

// identity says who owns a data directory. It is written before anything else
// is, and once more when the state groups have been formed: a group that was
// formed is never formed again, for it may have acknowledged something.
//
// The file is text, for people, in five lines:
//
//	tidemark-identity 1
//	broker <uuid>
//	cluster <uuid>
//	state new|formed
//	crc32c <8 hex digits over the lines before>
type identity struct {
	broker  controller.UUID
	cluster controller.UUID
	formed  bool
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// loadIdentity reads who we are, or makes it up where the directory holds nothing yet.
func loadIdentity(fsys fsx.FS, dir string) (identity, error) {
	name := filepath.Join(dir, identityFile)
	b, err := fsx.ReadFile(fsys, name, smallFile)
	if err == nil {
		id, err := parseIdentity(string(b))
		if err != nil {
			return id, fmt.Errorf("%s: %w: restore the file from a backup; without it the data cannot be told from another broker's", name, err)
		}
		return id, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return identity{}, fmt.Errorf("identity: %w", err)
	}
	for _, data := range []string{stateDir, topicsDir, stableFile} {
		there, err := exists(fsys, filepath.Join(dir, data))
		if err != nil {
			return identity{}, fmt.Errorf("identity: %w", err)
		}
		if there {
			return identity{}, fmt.Errorf("%s is missing, and %s holds data: restore the file from a backup, or choose an empty node.data_dir", name, dir)
		}
	}
	id := identity{broker: controller.NewUUID(), cluster: controller.NewUUID()}
	return id, id.save(fsys, dir)
}

func (id identity) save(fsys fsx.FS, dir string) error {
	if err := fsx.WriteFile(fsys, filepath.Join(dir, identityFile), []byte(id.String()), 0o600); err != nil {
		return fmt.Errorf("identity: %w", err)
	}
	return nil
}

func (id identity) String() string {
	state := "new"
	if id.formed {
		state = "formed"
	}
	text := fmt.Sprintf("tidemark-identity 1\nbroker %v\ncluster %v\nstate %s\n", id.broker, id.cluster, state)
	return text + fmt.Sprintf("crc32c %08x\n", crc32.Checksum([]byte(text), castagnoli))
}

func parseIdentity(text string) (id identity, err error) {
	lines := strings.Split(text, "\n")
	if !strings.HasPrefix(lines[0], "tidemark-identity ") {
		return id, errors.New("not an identity file")
	}
	if lines[0] != "tidemark-identity 1" {
		return id, fmt.Errorf("%q is of a version that this one cannot read", lines[0])
	}
	if len(lines) != 6 {
		return id, errors.New("the file is cut short or has grown")
	}
	if id.broker, err = controller.ParseUUID(strings.TrimPrefix(lines[1], "broker ")); err != nil {
		return id, err
	}
	if id.cluster, err = controller.ParseUUID(strings.TrimPrefix(lines[2], "cluster ")); err != nil {
		return id, err
	}
	id.formed = lines[3] == "state formed"
	if id.String() != text {
		return id, errors.New("the checksum does not fit")
	}
	return id, nil
}

// slot is this broker's identity in one state group. It is new for each data
// directory, as the broker's is.
func (id identity) slot(group string) controller.UUID {
	sum := sha256.Sum256([]byte(id.broker.String() + "/" + group))
	return controller.UUID(sum[:16])
}

func (id identity) serverID(group string) raft.ServerID {
	return raft.ServerID(id.broker.String() + "/" + id.slot(group).String())
}
