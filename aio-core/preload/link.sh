#!/bin/sh
# Links the archive that cargo builds as a shared library whose symbols have versions: link.sh ARCHIVE LIBRARY SONAME
set -eu
# Its thread runs in it for ever, so it stays when a program closes it (nodelete).
exec cc -shared -o "$2" -Wl,-soname,"$3" \
	-Wl,--version-script="$(dirname "$0")/versions.map" \
	-Wl,-z,nodelete -Wl,-z,relro -Wl,-z,now -Wl,--gc-sections \
	-Wl,--whole-archive "$1" -Wl,--no-whole-archive -lgcc_s -lc
