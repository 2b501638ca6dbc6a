.PHONY: generate lint test build powercut sim

build:
	go build -trimpath -o tidemark ./cmd/tidemark

# Generated code is checked in; CI fails on a difference.
generate:
	cd tools && go run ./genproto ../proto tidemark/v1/tidemark.proto

lint:
	test -z "$$(gofmt -l $$(git ls-files '*.go'))"
	go vet ./...
	cd tools && go build -o ../.bin/staticcheck honnef.co/go/tools/cmd/staticcheck
	.bin/staticcheck ./...

test:
	go test ./...

# Power cuts for about so many seconds, as root: make powercut SECONDS=1800
powercut: SECONDS ?= 150
powercut:
	TIDEMARK_NO_SKIP=1 go test -count=1 -timeout 5m ./internal/testkit/cutfs
	TIDEMARK_NO_SKIP=1 TIDEMARK_POWERCUT_SECONDS=$(SECONDS) go test -count=1 -timeout $$(($(SECONDS) * 3 + 900))s -v ./test/powercut

# The deterministic simulation: SEEDS runs of SECONDS virtual seconds, two at a time, from SEED on.
SEED ?= 1
SEEDS ?= 36
sim: SECONDS ?= 40
sim:
	go run ./test/sim/cmd/simrun -seed $(SEED) -seconds $(SECONDS) -n $(SEEDS) -partitions 2 -least \
	ops_acked=200000,ops_unknown=1000,acked_during_fault=50000,elections=200,faults=500,unknown_landed=50,duplicates_suppressed=200,rebalances=50,segments_given_up=200,repaired_tails=4,quarantined=3,resets=8,zombies_refused=20
