#!/bin/bash
# A real S3 server for tests: Ceph's RADOS Gateway on one node (mon + osd + radosgw), loopback only.
#
#   infra/rgw.sh start FOLDER [PORT]   prints READY after about 12 s; keys testkey / testsecret
#   infra/rgw.sh gateway FOLDER        starts the gateway again after it was killed
#   infra/rgw.sh stop FOLDER           ends the three processes
#
# PORT (18084), PORT+1 and PORT+2 must be free.  Data lives in memory; process ids in
# FOLDER/{mon,osd,rgw}.pid.  FOLDER must be short: sockets in it have a limit of 107 characters.
# Needs: apt-get install -y --no-install-recommends radosgw ceph-mon ceph-osd ceph-common
set -euo pipefail

usage() { sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2; }
[ $# -ge 2 ] || usage
VERB=$1 DIR=$(realpath -m "$2") PORT=${3:-18084}
CONF=(-c "$DIR/ceph.conf")

start_daemon() {  # start_daemon NAME COMMAND...: in the background, detached from our output
  local name=$1; shift
  "$@" >>"$DIR/log/$name.out" 2>&1 </dev/null &
  echo $! >"$DIR/$name.pid"
}

gateway() {
  local port; port=$(cat "$DIR/port")
  start_daemon rgw radosgw "${CONF[@]}" -n client.rgw -f
  for _ in $(seq 240); do
    kill -0 "$(cat "$DIR/rgw.pid")" 2>/dev/null || break
    curl -s -o /dev/null "http://127.0.0.1:$port/" && return 0
    sleep 0.25
  done
  echo "rgw.sh: the gateway does not answer on port $port; see $DIR/log/rgw.out" >&2
  return 1
}

write_conf() {
  cat >"$DIR/ceph.conf" <<CONF
[global]
fsid = $1
mon host = [v2:127.0.0.1:$((PORT + 1)),v1:127.0.0.1:$((PORT + 2))]
mon initial members = a
public network = 127.0.0.0/8
public addr = 127.0.0.1
cluster addr = 127.0.0.1
keyring = $DIR/keyring
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pg autoscale mode = off
mon allow pool size one = true
mon warn on pool no redundancy = false
osd crush chooseleaf type = 0
mon max pg per osd = 2000
run dir = $DIR/run
pid file = $DIR/run/\$name.pid
admin socket = $DIR/run/\$name.asok
log file = $DIR/log/\$name.log
mon data avail crit = 1
mon data avail warn = 1
[mon.a]
mon data = $DIR/mon
host = localhost
[osd.0]
osd data = $DIR/osd
osd objectstore = memstore
memstore device bytes = 4294967296
osd memory target = 939524096
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:$PORT tcp_nodelay=1
rgw thread pool size = 64
CONF
}

write_keys() {
  local ring=$DIR/keyring
  ceph-authtool -C "$ring" --gen-key -n mon. --cap mon 'allow *'
  ceph-authtool "$ring" --gen-key -n client.admin \
    --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *'
  ceph-authtool "$ring" --gen-key -n client.rgw --cap mon 'allow *' --cap osd 'allow *'
  ceph-authtool "$ring" --gen-key -n osd.0 --cap mon 'allow profile osd' --cap osd 'allow *'
}

start() {
  if [ -e "$DIR" ] && [ ! -e "$DIR/ceph.conf" ] && [ -n "$(ls -A "$DIR")" ]; then
    echo "rgw.sh: $DIR exists and was not made by this script" >&2
    exit 2
  fi
  rm -rf "$DIR"
  mkdir -p "$DIR"/{mon,osd,log,run}
  echo "$PORT" >"$DIR/port"
  local fsid osd_id addresses
  fsid=$(cat /proc/sys/kernel/random/uuid)
  osd_id=$(cat /proc/sys/kernel/random/uuid)
  addresses="[v2:127.0.0.1:$((PORT + 1)),v1:127.0.0.1:$((PORT + 2))]"
  write_conf "$fsid"
  trap stop ERR
  {
    write_keys
    monmaptool --create --clobber --fsid "$fsid" --addv a "$addresses" "$DIR/monmap"
    ceph-mon "${CONF[@]}" --mkfs -i a --monmap "$DIR/monmap" --keyring "$DIR/keyring"
    start_daemon mon ceph-mon "${CONF[@]}" -i a -f
    timeout 30 ceph "${CONF[@]}" osd new "$osd_id"
    timeout 30 ceph "${CONF[@]}" auth import -i "$DIR/keyring"
    ceph-osd "${CONF[@]}" -i 0 --mkfs --osd-uuid "$osd_id"
    start_daemon osd ceph-osd "${CONF[@]}" -i 0 -f
  } >>"$DIR/log/setup.out" 2>&1
  gateway
  timeout 60 radosgw-admin "${CONF[@]}" user create --uid=test --display-name=test \
    --access-key=testkey --secret=testsecret >>"$DIR/log/setup.out" 2>&1
  echo READY
}

stop() {
  local name pid
  for name in rgw osd mon; do
    [ -e "$DIR/$name.pid" ] || continue
    pid=$(cat "$DIR/$name.pid")
    grep -qs "$DIR" "/proc/$pid/cmdline" || continue # ended, and the number may be another's now
    kill -CONT "$pid"
    kill "$pid"
    for _ in $(seq 10); do kill -0 "$pid" 2>/dev/null || continue 2; sleep 0.1; done
    kill -9 "$pid" 2>/dev/null || true # the OSD is slow to end, and keeps nothing
  done
}

case $VERB in
  start | gateway | stop) "$VERB" ;;
  *) usage ;;
esac
