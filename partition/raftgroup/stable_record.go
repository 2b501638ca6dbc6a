package raftgroup

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// The stable file: one header block, then slots of two copies. Every block has
// the size of a page, so that a write never touches another slot's block, and is
// never read before it is written. docs/format/stable.md draws it.
const (
	stableBlock   = 4096
	stableVersion = 1
	maxSlots      = 1 << 16 // 512 MiB of file; far beyond the groups of one broker
	maxCandidate  = 1024    // bytes of a candidate's name that may be read
	newCandidate  = 400     // that may be written: a record must fit into a sector

	recordFixed = 70 // bytes before the candidate's name
)

var (
	stableMagic = [8]byte{'T', 'M', 'S', 'T', 'A', 'B', 'L', 'E'}
	recordMagic = [4]byte{'T', 'M', 'V', 'S'}
	castagnoli  = crc32.MakeTable(crc32.Castagnoli)
)

var errBadBlock = errors.New("bad block")

// record is what one copy of a slot says about its group.
type record struct {
	free       bool // the slot belongs to no group
	group      [16]byte
	generation uint64 // of the slot; grows with every write, through all its groups
	term       uint64
	voteTerm   uint64
	candidate  []byte
	slots      uint32 // that were durable in the file when this was written

	buffered uint64 // vote term that awaits its candidate; never written
}

func (r record) holds(group [16]byte) bool { return !r.free && r.group == group }

// same tells whether two records say the same about a group.
func (r record) same(o record) bool {
	return r.free == o.free && r.group == o.group && r.term == o.term && r.voteTerm == o.voteTerm &&
		bytes.Equal(r.candidate, o.candidate)
}

func encodeStableHeader(salt uint64) []byte {
	b := make([]byte, stableBlock)
	copy(b, stableMagic[:])
	binary.LittleEndian.PutUint32(b[8:], stableVersion)
	binary.LittleEndian.PutUint32(b[12:], stableBlock)
	binary.LittleEndian.PutUint64(b[16:], salt)
	binary.LittleEndian.PutUint32(b[24:], crc32.Checksum(b[:24], castagnoli))
	return b
}

func decodeStableHeader(b []byte) (salt uint64, version uint32, err error) {
	if len(b) < stableBlock || !bytes.Equal(b[:8], stableMagic[:]) ||
		binary.LittleEndian.Uint32(b[24:]) != crc32.Checksum(b[:24], castagnoli) {
		return 0, 0, errBadBlock
	}
	version = binary.LittleEndian.Uint32(b[8:])
	if version == stableVersion && binary.LittleEndian.Uint32(b[12:]) != stableBlock {
		return 0, 0, errBadBlock
	}
	return binary.LittleEndian.Uint64(b[16:]), version, nil
}

// encode writes the record as the copy of slot number n. The checksum covers the file's
// salt and the place, so that blocks of another file or another slot never count.
func (r record) encode(salt uint64, n int) []byte {
	b := make([]byte, stableBlock)
	copy(b, recordMagic[:])
	if r.free {
		b[4] = 1
	}
	binary.LittleEndian.PutUint32(b[8:], r.slots)
	copy(b[12:28], r.group[:])
	binary.LittleEndian.PutUint64(b[28:], r.generation)
	binary.LittleEndian.PutUint64(b[36:], r.term)
	binary.LittleEndian.PutUint64(b[44:], r.voteTerm)
	// 52 to 67 are reserved, zero.
	binary.LittleEndian.PutUint16(b[68:], uint16(len(r.candidate)))
	end := recordFixed + copy(b[recordFixed:], r.candidate)
	binary.LittleEndian.PutUint32(b[end:], recordSum(b[:end], salt, n, r.generation))
	return b
}

func decodeRecord(b []byte, salt uint64, n, copyNumber int) (record, error) {
	if len(b) < stableBlock || !bytes.Equal(b[:4], recordMagic[:]) {
		return record{}, errBadBlock
	}
	size := int(binary.LittleEndian.Uint16(b[68:]))
	if size > maxCandidate {
		return record{}, errBadBlock
	}
	end := recordFixed + size
	r := record{
		free:       b[4] == 1,
		group:      [16]byte(b[12:28]),
		generation: binary.LittleEndian.Uint64(b[28:]),
		term:       binary.LittleEndian.Uint64(b[36:]),
		voteTerm:   binary.LittleEndian.Uint64(b[44:]),
		candidate:  bytes.Clone(b[recordFixed:end]),
		slots:      binary.LittleEndian.Uint32(b[8:]),
	}
	if binary.LittleEndian.Uint32(b[end:]) != recordSum(b[:end], salt, n, r.generation) || int(r.generation&1) != copyNumber {
		return record{}, errBadBlock
	}
	return r, nil
}

func recordSum(b []byte, salt uint64, n int, generation uint64) uint32 {
	var place [24]byte
	binary.LittleEndian.PutUint64(place[0:], salt)
	binary.LittleEndian.PutUint64(place[8:], uint64(n))
	binary.LittleEndian.PutUint64(place[16:], generation&1)
	return crc32.Update(crc32.Checksum(place[:], castagnoli), castagnoli, b)
}

func blank(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// copyOffset is where the copy that generation writes stands in the file.
func copyOffset(n int, generation uint64) int64 {
	return stableBlock * int64(1+2*n+int(generation&1))
}

// pickCopy decides between the two copies of a slot: the newer one counts. A record is one sector, which
// a disk writes whole or not at all, and one copy is durable before the other is written. So no crash leaves a
// copy that is neither blank nor whole, nor a blank one beside a slot's second write.
func pickCopy(b []byte, salt uint64, n int) (r record, err error) {
	blanks := 0
	r = record{free: true}
	for c := range 2 {
		block := b[c*stableBlock : (c+1)*stableBlock]
		got, err := decodeRecord(block, salt, n, c)
		switch {
		case err == nil && got.generation > r.generation:
			r = got
		case err == nil:
		case blank(block):
			blanks++
		default:
			return record{}, fmt.Errorf("copy %d is damaged", c)
		}
	}
	if blanks == 1 && r.generation != 1 {
		return record{}, fmt.Errorf("one copy is blank, the other is of write %d", r.generation)
	}
	return r, nil
}
