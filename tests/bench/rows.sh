# What `scripts/bench machine` runs in the guest: `run prepare 0` once, then `run row_NAME ROUND`. Each says how it ended and, so that
# both machines are known to have done the same, what it computed. All but tree_walk work on files in memory.

numbers=/tmp/numbers
zeros=/tmp/zeros
tree=/srv/bench/tree

run() {
    result=$("$1" 2>&1)
    printf '\nbench: %s %s status %s result %s\nbench: %s %s over\n' "$1" "$2" $? "$result" "$1" "$2"
}

prepare() {
    awk 'BEGIN { for (i = 0; i < 30000; i++) printf "%08d line %d\n", i * 7919 % 30011, i }' >$numbers &&
        dd if=/dev/zero of=$zeros bs=1M count=16 2>/dev/null &&
        cp /usr/bin/busybox /tmp/busybox
}

row_sha256sum() {
    cat $zeros $zeros $zeros $zeros $zeros | sha256sum
}

row_md5sum() {
    cat $zeros $zeros $zeros $zeros $zeros $zeros $zeros $zeros $zeros $zeros $zeros $zeros | md5sum
}

# Sums, products and quotients of floating point numbers.
row_awk() {
    awk 'BEGIN { for (i = 1; i <= 200000; i++) { s += 1.000001 / i; t = t * 0.5 + i / 3 } printf "%.9f %.9f\n", s, t }'
}

row_sort() {
    sort $numbers | sort -k 3n | sort -r | md5sum
}

row_fork_exec() {
    i=0
    while [ $i -lt 200 ]; do
        /tmp/busybox true || return
        i=$((i + 1))
    done
    echo $i
}

# A read and a write for each byte: 400,000 system calls.
row_syscalls() {
    dd if=$zeros bs=1 count=200000 2>/dev/null of=/dev/null && echo done
}

row_sh_loop() {
    i=0
    s=0
    while [ $i -lt 60000 ]; do
        s=$(((s * 31 + i) % 65521))
        i=$((i + 1))
    done
    echo $s
}

# Names, attributes and contents: what the flash's server does, and the guest's own file system above it.
row_tree_walk() {
    find $tree -type f -size +0 -mtime +1 | sort | xargs cat | md5sum
}

# Every screen of the handset, as its program draws them on the phone.
row_draw() {
    rm -rf /tmp/draw && mkdir /tmp/draw && handset --render /tmp/draw >/dev/null && cat /tmp/draw/* | md5sum
}
