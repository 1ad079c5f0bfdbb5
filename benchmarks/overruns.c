/* Preloaded, it puts a guard behind every block that posix_memalign gives, which is what torch and oneDNN ask for
   memory. If something was written there, free ends the process with exit status 86. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <malloc.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

enum { GUARD = 1 << 14, FILL = 0xC7, OVERRUN = 86 };

struct end {  /* the last bytes of a block, by which it is known again */
    uintptr_t block;
    size_t bytes;
};

int posix_memalign(void **block, size_t alignment, size_t bytes) {
    static int (*real)(void **, size_t, size_t);
    if (!real) real = dlsym(RTLD_NEXT, "posix_memalign");
    int error = real(block, alignment, bytes + GUARD);
    if (error) return error;
    size_t usable = malloc_usable_size(*block);
    struct end end = {~(uintptr_t)*block, bytes};
    memset((char *)*block + bytes, FILL, usable - bytes);
    memcpy((char *)*block + usable - sizeof end, &end, sizeof end);
    return 0;
}

void free(void *block) {
    static void (*real)(void *);
    if (!real) real = dlsym(RTLD_NEXT, "free");
    size_t usable = block ? malloc_usable_size(block) : 0;
    if (usable >= GUARD) {
        struct end end;
        memcpy(&end, (char *)block + usable - sizeof end, sizeof end);
        if (end.block == ~(uintptr_t)block && end.bytes <= usable - GUARD)
            for (size_t i = end.bytes; i < usable - sizeof end; i++)
                if (((unsigned char *)block)[i] != FILL) _exit(OVERRUN);
    }
    real(block);
}
