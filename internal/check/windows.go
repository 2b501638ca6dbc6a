package check

import (
	"cmp"
	"slices"
	"time"
)

// Window is how long a fault kept a partition from acknowledging.
type Window struct {
	Fault Fault
	Key   Key           // the partition that was hit worst
	Gap   time.Duration // the longest between successive acknowledgements, from the fault on
	Open  bool          // nothing was acknowledged after it was healed, for longer than Settle; Gap lasts to the end of the load
}

// WindowConfig says how windows are measured. The zero value is that of Check.
type WindowConfig struct {
	// Settle is how long after its end a fault may still cause a gap, if no other fault has begun; 5 s if 0.
	Settle time.Duration
	// LoadEnd is when the load stopped, in ns; 0: at the last acknowledgement of any partition. A
	// fault at or after it has no window.
	LoadEnd int64
}

// acksOf collects the times of all strong acknowledgements by key. Partitions without any are left out.
func acksOf(h *History) map[Key][]int64 {
	acks := map[Key][]int64{}
	for i := range h.Ops {
		if op := &h.Ops[i]; op.Kind == Send && op.strong() {
			acks[op.Key] = append(acks[op.Key], op.Complete)
		}
	}
	return acks
}

// Windows measures the longest time without an acknowledgement that each fault caused. acks are the times at
// which a steady load was acknowledged (ns), by partition, in any order. A fault with a Key is measured there,
// one without in the partition that it hit worst. The windows have the order of faults.
func Windows(acks map[Key][]int64, faults []Fault, c WindowConfig) []Window {
	if c.Settle == 0 {
		c.Settle = 5 * time.Second
	}
	sorted := map[Key][]int64{}
	var keys []Key
	var end int64
	for k, list := range acks {
		if len(list) == 0 {
			continue
		}
		sorted[k] = slices.Sorted(slices.Values(list))
		keys = append(keys, k)
		end = max(end, sorted[k][len(list)-1])
	}
	slices.SortFunc(keys, compareKeys)
	if c.LoadEnd != 0 {
		end = c.LoadEnd
	}
	starts := make([]int64, 0, len(faults))
	for _, f := range faults {
		starts = append(starts, f.From)
	}
	slices.Sort(starts)
	var list []Window
	for _, f := range faults {
		if f.From >= end {
			continue
		}
		t := c.timesOf(f, starts, end)
		worst, some := Window{Fault: f}, false
		for _, k := range keys {
			if !f.Key.IsZero() && f.Key != k {
				continue
			}
			gap, open := t.longestGap(sorted[k])
			if w := (Window{f, k, gap, open}); !some || w.Gap > worst.Gap {
				worst, some = w, true
			}
		}
		if some {
			list = append(list, worst)
		}
	}
	return list
}

// times are what a gap of one fault is measured by.
type times struct {
	from    int64 // of the fault
	healed  int64
	horizon int64 // gaps that begin later are not the fault's
	next    int64 // when the next fault begins
	end     int64 // of the load
	patient bool  // the load went on for long enough to see whether the fault was got over
}

func (c WindowConfig) timesOf(f Fault, starts []int64, end int64) times {
	healed := max(f.From, f.Until)
	t := times{from: f.From, healed: healed, horizon: healed + int64(c.Settle), next: forever, end: end, patient: end > healed+int64(c.Settle)}
	if n, _ := slices.BinarySearch(starts, healed+1); n < len(starts) {
		t.next = starts[n]
	}
	t.horizon = min(t.horizon, t.next)
	return t
}

// longestGap is the longest between the fault, the acks until its horizon and the first one after it. A gap that runs
// into the next fault is cut there if this one had been got over.
func (t times) longestGap(acks []int64) (gap time.Duration, open bool) {
	n, _ := slices.BinarySearch(acks, t.from+1)
	last := t.from
	for ; n < len(acks) && acks[n] <= t.horizon; n++ {
		gap = max(gap, time.Duration(acks[n]-last))
		last = acks[n]
	}
	until := t.end
	if n < len(acks) {
		until = acks[n]
	}
	if last > t.healed {
		until = min(until, t.next)
	}
	return max(gap, time.Duration(until-last)), n == len(acks) && last <= t.healed && t.patient
}

// Unavailable is what the windows of one kind of fault come to.
type Unavailable struct {
	P50, Max time.Duration
	N        int // faults
	Open     int // of them, never recovered
}

// Unavailability sums windows up by kind of fault.
func Unavailability(list []Window) map[string]Unavailable {
	gaps := map[string][]time.Duration{}
	sum := map[string]Unavailable{}
	for _, w := range list {
		kind := w.Fault.Kind
		gaps[kind] = append(gaps[kind], w.Gap)
		u := sum[kind]
		u.N++
		if w.Open {
			u.Open++
		}
		sum[kind] = u
	}
	for kind, list := range gaps {
		slices.SortFunc(list, cmp.Compare[time.Duration])
		u := sum[kind]
		u.P50, u.Max = list[(len(list)-1)/2], list[len(list)-1]
		sum[kind] = u
	}
	return sum
}
