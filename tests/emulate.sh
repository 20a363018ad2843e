#!/bin/sh
# Runs a program of tests on an emulated CPU that has AVX-512 VNNI and VBMI:
#
#     tests/emulate.sh program [argument ...]
#
# Bochs emulates a whole machine, so a kernel of Debian boots in it, from an image of a
# CD made here, to nothing but the program. What it prints comes out here; the exit code
# is 0 if its was. It boots in a minute or two, and runs far slower than here.
set -eu

for tool in bochs-bin busybox cpio genisoimage script strip; do
    command -v $tool >/dev/null || { echo "emulate.sh: $tool not found: see CONTRIBUTING.md" >&2; exit 1; }
done
program=$(realpath "$1")
shift
cd "$(dirname "$0")/.."
mkdir -p target/emulator
cd target/emulator

# The kernel for clouds is packed so that it is soon unpacked, and has few drivers.
if [ ! -e vmlinuz ]; then
    package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-[^ ]*\).*/\1/p')
    apt-get download "$package"
    dpkg-deb --fsys-tarfile "$package"_*.deb | tar -xO --wildcards './boot/vmlinuz-*' >vmlinuz.part
    mv vmlinuz.part vmlinuz
    rm "$package"_*.deb
fi

rm -rf root cd serial.txt
mkdir -p root/bin root/dev root/proc cd
cp "$(command -v busybox)" root/bin/busybox
strip -o root/bin/program "$program"
for library in $(ldd "$program" | grep -o '/[^ ]*'); do
    cp -L --parents "$library" root
done
# Bochs ends when "Shutdown" is written to port 0x8900.
cat >root/init <<EOF
#!/bin/busybox sh
b=/bin/busybox
\$b mount -t proc proc /proc
\$b mount -t devtmpfs dev /dev
echo "cpu:\$(\$b grep -m1 ^flags /proc/cpuinfo | \$b grep -o ' avx[a-z_0-9]*' | \$b tr -d '\n')"
/bin/program $*
echo "program ended with \$?"
for letter in S h u t d o w n; do
    \$b printf \$letter | \$b dd of=/dev/port bs=1 seek=35072 2>/dev/null
done
EOF
chmod +x root/init
(cd root && find . | cpio --quiet -o -H newc | gzip -1) >cd/initrd.gz

# The CPU's XSAVES and PKU are not what the kernel expects. And as bochs says nothing of
# fast strings, the kernel turns them off; its memmove then is wrong unless the promise of
# fast short ones (FSRM) goes too. A second is as many cycles as bochs' clock has.
cp vmlinuz /usr/lib/ISOLINUX/isolinux.bin /usr/lib/syslinux/modules/bios/ldlinux.c32 cd
cat >cd/isolinux.cfg <<'EOF'
DEFAULT tests
LABEL tests
 KERNEL vmlinuz
 INITRD initrd.gz
 APPEND console=ttyS0 quiet rdinit=/init panic=-1 mitigations=off lsm= random.trust_cpu=on clearcpuid=pku,xsaves,xsavec,fsrm tsc=reliable tsc_early_khz=20000
EOF
genisoimage -quiet -o cd.iso -b isolinux.bin -c boot.cat -no-emul-boot -boot-load-size 4 -boot-info-table cd
cat >bochsrc <<'EOF'
config_interface: textconfig
display_library: term
cpu: model=corei7_icelake_u, count=1, ips=20000000
clock: sync=none
megs: 1024
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=cdrom, path=cd.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=serial.txt
sound: waveoutdrv=dummy
speaker: enabled=0
panic: action=fatal
log: bochs.log
EOF
# Debian's bochs is the one with a debugger, which is told to go on.
echo c >go
touch serial.txt
tail -f serial.txt &
shown=$!
trap 'kill $shown' EXIT
TERM=vt100 script -qec "bochs-bin -q -f bochsrc -rc go" /dev/null </dev/null >bochs.txt || true
sleep 1
grep -q "^program ended with 0" serial.txt
