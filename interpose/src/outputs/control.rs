//! ioctl, fcntl and semctl: whether the argument is a pointer, and to how much, depends on the command.

use super::block;
use crate::probe;
use core::ffi::{c_int, c_ulong};

const SIOCGIFCONF: c_ulong = 0x8912;
const FS_IOC_FIEMAP: c_ulong = 0xC020_660B;

/// Makes the third argument of ioctl(2) resident. A value that is no pointer lies in no armed page.
pub fn control_argument(request: c_ulong, arg: u64) {
    // Newer requests carry the length of what they read and write; older ones are those of terminals and sockets.
    let coded = (request >> 16) & 0x3fff;
    let len = match request {
        FS_IOC_FIEMAP => 64 << 10,
        _ if coded != 0 => coded,
        0x5400..=0x54ff | 0x8900..=0x89ff => 128,
        _ => 4096,
    };
    block(arg, len);
    if request == SIOCGIFCONF
        && let Some([len, at]) = probe::read::<[u64; 2]>(arg)
    {
        block(at, len & 0xffff_ffff);
    }
}

/// Makes the third argument of fcntl(2) resident.
pub fn descriptor(command: c_int, arg: u64) {
    match command {
        libc::F_GETLK | libc::F_SETLK | libc::F_SETLKW => block(arg, 32),
        libc::F_OFD_GETLK | libc::F_OFD_SETLK | libc::F_OFD_SETLKW => block(arg, 32),
        // F_SETOWN_EX, F_GETOWN_EX, F_GETOWNER_UIDS, and the hints of writes.
        15..=17 | 1035..=1038 => block(arg, 8),
        _ => {}
    }
}

/// Makes the fourth argument of semctl(2) resident.
pub fn semaphores(command: c_int, arg: u64) {
    match command & 0xff {
        // IPC_SET, IPC_STAT, IPC_INFO, SEM_STAT, SEM_INFO, SEM_STAT_ANY.
        1 | 2 | 3 | 18 | 19 | 20 => block(arg, 128),
        // GETALL and SETALL: two bytes for each of at most 32,000.
        13 | 17 => block(arg, 64_000),
        _ => {}
    }
}
