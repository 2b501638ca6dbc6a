package statelog

import (
	"encoding/binary"
	"hash/crc32"
)

// A frame is what lies inside one entry of tidwall/wal. docs/format/statelog.md draws it.
const (
	frameHead = 48
	// MaxEntryBytes bounds data and extensions of one entry together.
	MaxEntryBytes = 64 << 20
	maxFrame      = frameHead + MaxEntryBytes
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Entry is one Raft entry.
type Entry struct {
	Index, Term uint64
	Type        uint8
	AppendedAt  int64 // wall-clock nanoseconds of the leader, for people only
	Data        []byte
	Extensions  []byte
}

// appendFrame encodes an entry. The checksum covers the generation too, so that bytes of
// another file never count. synced is the last index that was durable before.
func appendFrame(b []byte, e Entry, generation, synced uint64) []byte {
	at := len(b)
	b = append(b, make([]byte, frameHead)...)
	h := b[at:]
	h[4] = e.Type
	binary.LittleEndian.PutUint32(h[8:], uint32(len(e.Extensions)))
	binary.LittleEndian.PutUint64(h[16:], e.Index)
	binary.LittleEndian.PutUint64(h[24:], e.Term)
	binary.LittleEndian.PutUint64(h[32:], synced)
	binary.LittleEndian.PutUint64(h[40:], uint64(e.AppendedAt))
	b = append(b, e.Extensions...)
	b = append(b, e.Data...)
	binary.LittleEndian.PutUint32(b[at:], frameSum(b[at+4:], generation))
	return b
}

func frameSum(b []byte, generation uint64) uint32 {
	var seed [8]byte
	binary.LittleEndian.PutUint64(seed[:], generation)
	return crc32.Update(crc32.Checksum(seed[:], castagnoli), castagnoli, b)
}

// decodeFrame decodes one whole frame. The entry's slices are the frame's.
func decodeFrame(b []byte, generation uint64) (e Entry, synced uint64, ok bool) {
	if len(b) < frameHead || len(b) > maxFrame {
		return e, 0, false
	}
	ext := binary.LittleEndian.Uint32(b[8:])
	if uint64(ext) > uint64(len(b)-frameHead) || binary.LittleEndian.Uint32(b) != frameSum(b[4:], generation) {
		return e, 0, false
	}
	body := b[frameHead:]
	e = Entry{
		Index:      binary.LittleEndian.Uint64(b[16:]),
		Term:       binary.LittleEndian.Uint64(b[24:]),
		Type:       b[4],
		AppendedAt: int64(binary.LittleEndian.Uint64(b[40:])),
		Extensions: body[:ext:ext],
		Data:       body[ext:],
	}
	return e, binary.LittleEndian.Uint64(b[32:]), true
}

// nextFrame splits one of tidwall/wal's binary entries: a length as uvarint, then the frame.
// Zero is no valid length.
func nextFrame(b []byte) (frame []byte, size int, ok bool) {
	n, w := binary.Uvarint(b)
	if w <= 0 || n == 0 || n > maxFrame || n > uint64(len(b)-w) {
		return nil, 0, false
	}
	return b[w : w+int(n)], w + int(n), true
}

// scanned is what the bytes of a segment hold.
type scanned struct {
	frames [][]byte // valid, with consecutive indexes
	last   uint64   // index of the last of them, first-1 when there is none
	good   int      // bytes that they take
	// proof is the highest index that a valid frame says was durable: one behind the damage, or one of
	// those with which a generation began, all of which were durable before it was the current one.
	proof uint64
}

// scan checks every frame from index first on.
func scan(b []byte, first, generation uint64) scanned {
	s, known := scanned{last: first - 1}, uint64(0)
	for s.good < len(b) {
		frame, size, ok := nextFrame(b[s.good:])
		if !ok {
			break
		}
		e, synced, ok := decodeFrame(frame, generation)
		if !ok || e.Index != s.last+1 {
			break
		}
		known = max(known, synced)
		s.frames = append(s.frames, frame)
		s.last, s.good = e.Index, s.good+size
	}
	s.proof = max(known, proofBehind(b[s.good:], s.last, generation))
	return s
}

// proofBehind looks for valid frames behind damage, at any byte. Frames of one unfinished write may
// survive without their predecessors; but when such a frame was written after
// the damaged place had been synced, no crash explains the damage.
func proofBehind(b []byte, last, generation uint64) (proof uint64) {
	for at := 1; at+frameHead < len(b); at++ {
		// The index must be near; that spares the checksum nearly everywhere.
		n, w := binary.Uvarint(b[at:])
		if w <= 0 || n < frameHead || n > uint64(len(b)-at-w) {
			continue
		}
		frame := b[at+w : at+w+int(n)]
		if index := binary.LittleEndian.Uint64(frame[16:]); index <= last || index > last+1<<32 {
			continue
		}
		if _, synced, ok := decodeFrame(frame, generation); ok {
			proof = max(proof, synced)
		}
	}
	return proof
}
