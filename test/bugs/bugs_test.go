//go:build bugs

package bugs

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tidemarkhq/tidemark/internal/bug"
)

// controls names, for each bug, the test that must fail with it and pass without it.
var controls = []struct{ bug, pkg, test string }{
	{"nosync", "log", "TestPowerCutAtEveryOperation"},
	{"no_dirsync", "log", "TestPowerCutAtEveryOperation"},
	{"watermark_not_lowered", "log", "TestPowerCutAtEveryOperation"},
	{"retry_fsync", "log", "TestFailedOperationPoisons"},
	{"truncate_corrupt", "log", "TestDamageAndWhatBecomesOfIt"},
	{"serve_unchecked", "log", "TestBitFlipIsNeverServed"},
	{"reuse_salt", "log", "TestGivenUpSegmentsAreUsedAgain"},
	{"statelog_nosync", "log/statelog", "TestFailedSyncPoisonsTheLogAndIsNotRepeated"},
	{"trust_the_page_cache", "partition/raftgroup", "TestVotesOfADeadProcessAreDurableOnceRead"},
	{"forget_vote", "partition/raftgroup", "TestCrashAtEveryOperation"},
	{"split_vote", "partition/raftgroup", "TestVoteIsOneRecord"},
	{"fast_heartbeat", "partition/raftgroup", "TestADeposedLeaderNeverWritesInItsSuccessorsTerm"},
	{"loose_commit", "partition/raftgroup", "TestACommitIndexCoversOnlyWhatTheRequestShows"},
	{"deaf_pipeline", "partition/raftgroup", "TestAFollowerCatchesUpAfterARefusedRequest"},
	{"ack_before_commit", "partition", "TestACutOffLeaderRefusesAcksAll"},
	{"all_is_majority", "partition", "TestAcksAllWaitsForEveryInSyncReplica"},
	{"zombie_request", "partition", "TestRequestsThatOutliveTheirTerm"},
	{"commit_is_the_end", "partition", "TestTheHighWatermarkAtTheStartIsWhatWasKnownToBeCommitted"},
	{"early_leader", "partition", "TestALeaderThatHasCommittedNothingServesNothing"},
	{"reset_unchecked", "partition", "TestAnOfferResetsOnlyWhoEndsBelowOrDisagrees"},
	{"high_above_commit", "partition", "TestACutOffLeaderShowsNothingUncommitted"},
	{"dedupe_leader_only", "partition", "TestADuplicateIsKnownAfterARestart"},
	{"state_without_producers", "partition", "TestStateAfterARestartIsTheStateBefore"},
	{"retention_ignores_hold", "partition", "TestRetentionStopsAtTheCheckpoint"},
	{"retention_before_checkpoint", "partition", "TestRetentionStopsAtTheCheckpoint"},
	{"meta_snapshot", "partition", "TestANewReplicaGetsAllThatIsRetained"},
	{"same_id_after_wipe", "partition", "TestAFormedReplicaThatLostItsLogIsNotMadeAgain"},
	{"linearize_alone", "partition", "TestACutOffLeaderLinearizesNothing"},
	{"commit_offset_no_fence", "broker/group", "TestScripts"},
}

func TestBugsAreCaught(t *testing.T) {
	bins := t.TempDir()
	caught := 0
	for _, c := range controls {
		t.Run(c.bug, func(t *testing.T) {
			bin := build(t, bins, c.pkg)
			if out, err := run(t, bin, c.pkg, c.test, ""); err != nil {
				t.Fatalf("%s fails without the bug: %v\n%s", c.test, err, out)
			} else if !regexp.MustCompile(`(?m)^--- PASS: ` + c.test + ` `).MatchString(out) {
				t.Fatalf("there is no test %s in %s\n%s", c.test, c.pkg, out)
			}
			out, err := run(t, bin, c.pkg, c.test, c.bug)
			if err == nil {
				t.Fatalf("%s passes although the bug is there", c.test)
			}
			t.Logf("%s says: %s", c.test, complaint(out))
			caught++
		})
	}
	t.Logf("negative controls: %d of %d caught", caught, len(controls))
}

// Every bug stands in the table once.
func TestEveryBugIsControlled(t *testing.T) {
	var listed []string
	for _, c := range controls {
		listed = append(listed, c.bug)
	}
	want := bug.Names()
	slices.Sort(listed)
	slices.Sort(want)
	if !slices.Equal(listed, want) {
		t.Errorf("controls are %q, bugs are %q", listed, want)
	}
}

// build makes a package's test binary, once.
func build(t *testing.T, dir, pkg string) string {
	t.Helper()
	bin := filepath.Join(dir, strings.ReplaceAll(pkg, "/", "_")+".test")
	if _, err := os.Stat(bin); err == nil {
		return bin
	}
	cmd := exec.Command("go", "test", "-c", "-vet=off", "-tags", "bugs", "-o", bin, "./"+pkg)
	cmd.Dir = "../.."
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the tests of %s: %v\n%s", pkg, err, out)
	}
	return bin
}

// run runs one test with a bug. A test that hangs has noticed it as well.
func run(t *testing.T, bin, pkg, test, name string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, bin, "-test.run=^"+test+"$", "-test.v", "-test.short", "-test.timeout=30s")
	cmd.Dir = filepath.Join("../..", pkg)
	cmd.Env = append(os.Environ(), "TIDEMARK_BUG="+name)
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		err = errors.Join(err, ctx.Err())
	}
	return string(out), err
}

var place = regexp.MustCompile(`(?m)^ +(\w+\.go:\d+: .*)$`)

// complaint is the last line with which a test failed.
func complaint(out string) string {
	all := slices.DeleteFunc(place.FindAllString(out, -1), func(l string) bool { return strings.Contains(l, "seed ") && !strings.Contains(l, ",") })
	if len(all) > 0 {
		return strings.TrimSpace(all[len(all)-1])
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	for _, l := range lines {
		if strings.HasPrefix(l, "panic:") || strings.HasPrefix(l, "fatal error:") {
			return l
		}
	}
	return lines[len(lines)-1]
}
