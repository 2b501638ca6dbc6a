package partition

// queue is a first-in first-out queue that reuses its memory. The zero queue is empty.
type queue[T any] struct {
	ring []T // its length is a power of two, or 0
	head int
	n    int
}

func (q *queue[T]) len() int   { return q.n }
func (q *queue[T]) at(i int) T { return q.ring[(q.head+i)&(len(q.ring)-1)] }

func (q *queue[T]) push(x T) {
	if q.n == len(q.ring) {
		grown := make([]T, max(8, 2*q.n))
		for i := range q.n {
			grown[i] = q.at(i)
		}
		q.ring, q.head = grown, 0
	}
	q.ring[(q.head+q.n)&(len(q.ring)-1)] = x
	q.n++
}

func (q *queue[T]) front() (x T, ok bool) {
	if q.n == 0 {
		return x, false
	}
	return q.at(0), true
}

// pop removes the front, and keeps no reference to it.
func (q *queue[T]) pop() {
	var zero T
	q.ring[q.head] = zero
	q.head = (q.head + 1) & (len(q.ring) - 1)
	q.n--
}

// drop removes the back.
func (q *queue[T]) drop() {
	var zero T
	q.ring[(q.head+q.n-1)&(len(q.ring)-1)] = zero
	q.n--
}
