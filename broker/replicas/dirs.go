package replicas

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strconv"
	"time"

	"github.com/tidemarkhq/tidemark/broker/controller"
	"github.com/tidemarkhq/tidemark/internal/failpoint"
)

const (
	topicsDir = "topics"
	trashDir  = "trash"
	// trashPause is the mean time between two files that are removed: removing
	// a large file holds up the file system's journal, and everybody's fsync.
	trashPause = 50 * time.Millisecond
)

func (m *Manager) path(name string) string { return filepath.Join(m.cfg.Dir, name) }

func (m *Manager) topicDir(topic controller.UUID) string {
	return filepath.Join(m.cfg.Dir, topicsDir, topic.String())
}

func (m *Manager) replicaDir(topic controller.UUID, p int32) string {
	return filepath.Join(m.topicDir(topic), strconv.Itoa(int(p)))
}

// prepareDir makes the directory of a new replica, durably, and looks for that
// of a formed one.
func (m *Manager) prepareDir(h *hosted, isNew bool) error {
	_, err := m.cfg.FS.Stat(h.dir)
	if err == nil {
		return nil
	}
	if !missing(err) {
		return err
	}
	if !isNew {
		return fmt.Errorf("%w: there is no directory %s", errLost, h.dir)
	}
	if err := m.cfg.FS.MkdirAll(h.dir, 0o700); err != nil {
		return err
	}
	failpoint.Hit("replicas/create/made")
	// Both names must survive a power cut before the metadata says "formed":
	// otherwise the replica would count as lost.
	return errors.Join(m.cfg.FS.SyncDir(m.topicDir(h.topic)), m.cfg.FS.SyncDir(m.path(topicsDir)))
}

// moveToTrash takes a topic's directory out of the way in one step. It may have been done
// before, in a life that ended before the metadata knew; it is made durable then all the same.
func (m *Manager) moveToTrash(topic controller.UUID) error {
	from, to := m.topicDir(topic), filepath.Join(m.path(trashDir), topic.String())
	if _, err := m.cfg.FS.Stat(from); err == nil {
		if _, err := m.cfg.FS.Stat(to); err == nil {
			to += "." + controller.NewUUID().String() // a name in both directories
		}
		if err := m.cfg.FS.Rename(from, to); err != nil {
			return err
		}
	} else if !missing(err) {
		return err
	}
	failpoint.Hit("replicas/trash/renamed")
	// Trash first: a name that is in both directories after a power cut is
	// moved again, one that is in neither is not lost to anybody. A failed
	// sync may have dropped what it should have written: no second one is tried.
	if err := errors.Join(m.cfg.FS.SyncDir(m.path(trashDir)), m.cfg.FS.SyncDir(m.path(topicsDir))); err != nil {
		m.cfg.OnFatal(fmt.Errorf("sync of the trash: %w", err))
		return err
	}
	return nil
}

// warnAboutStrangers names directories that the metadata does not know. They may be
// all that is left of something, so nobody here removes them.
func (m *Manager) warnAboutStrangers() {
	known := map[string]bool{}
	for _, t := range m.meta.Topics() {
		known[t.ID.String()] = true
	}
	for _, t := range m.meta.Tombstones() {
		known[t.Topic.String()] = true
	}
	entries, err := m.cfg.FS.ReadDir(m.path(topicsDir))
	if err != nil {
		m.cfg.Logger.Warn("cannot list the topic directories", "err", err)
	}
	for _, e := range entries {
		if !known[e.Name()] {
			m.cfg.Logger.Warn("the metadata does not know this directory; it is kept and not served", "dir", filepath.Join(m.path(topicsDir), e.Name()))
		}
	}
}

// emptyTrash removes what is in the trash, file by file.
func (m *Manager) emptyTrash(ctx context.Context) {
	for {
		if err := m.removeSlowly(ctx, m.path(trashDir), true); err != nil && ctx.Err() == nil {
			m.cfg.Logger.Warn("the trash cannot be emptied", "dir", m.path(trashDir), "err", err)
		}
		select {
		case <-m.recycle:
		case <-ctx.Done():
			return
		}
	}
}

// removeSlowly removes a directory's content, then the directory unless it is to be kept.
func (m *Manager) removeSlowly(ctx context.Context, dir string, keep bool) error {
	entries, err := m.cfg.FS.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if e.IsDir() {
			err = m.removeSlowly(ctx, path, false)
		} else if err = pause(ctx, trashPause); err == nil {
			err = m.cfg.FS.Remove(path)
		}
		if err != nil {
			return err
		}
	}
	if keep {
		return nil
	}
	return m.cfg.FS.Remove(dir)
}

// pause waits for about d.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d/2 + rand.N(d))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
