//go:build bugs

package bug

import (
	"fmt"
	"os"
	"slices"
	"sync/atomic"
)

// names are in the order of the constants.
var names = []string{
	"", "nosync", "no_dirsync", "retry_fsync", "truncate_corrupt", "watermark_not_lowered", "serve_unchecked", "statelog_nosync", "reuse_salt",
	"forget_vote", "trust_the_page_cache", "split_vote",
	"ack_before_commit", "all_is_majority", "zombie_request", "commit_is_the_end", "early_leader", "reset_unchecked", "high_above_commit", "dedupe_leader_only", "state_without_producers", "retention_ignores_hold", "retention_before_checkpoint",
	"meta_snapshot", "same_id_after_wipe", "linearize_alone",
	"fast_heartbeat", "loose_commit", "deaf_pipeline",
	"commit_offset_no_fence",
}

// Names are what Set and TIDEMARK_BUG take.
func Names() []string { return slices.Clone(names[1:]) }

var active atomic.Int64

// Variable is the name of the variable that switches a bug on for a whole process.
const Variable = "TIDEMARK_BUG"

var _ = Set(os.Getenv(Variable))

// Set switches one bug on and all others off; "" is none. It panics for a name that it does not know.
func Set(name string) bool {
	n := slices.Index(names, name)
	if n < 0 {
		panic(fmt.Sprintf("bug %q is unknown; there are %q", name, names[1:]))
	}
	active.Store(int64(n))
	return n > 0
}

// On tells whether a bug is switched on.
func On(b Bug) bool { return b != 0 && Bug(active.Load()) == b }
