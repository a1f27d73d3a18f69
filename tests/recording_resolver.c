/* Preloaded by tests/recorded_lookups.py: notes every look-up of a host and every connection to one, and refuses it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

static void note(const char *what, const char *name) {
    const char *path = getenv("RECORDED_LOOKUPS");
    FILE *file = path ? fopen(path, "a") : NULL;
    if (file) {
        fprintf(file, "%s %s\n", what, name ? name : "");
        fclose(file);
    }
}

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    (void)service, (void)hints, (void)found;
    note("getaddrinfo", node);
    return EAI_NONAME;
}

struct hostent *gethostbyname(const char *name) {
    note("gethostbyname", name);
    return NULL;
}

static int is_remote(const struct sockaddr *address) {
    return address && (address->sa_family == AF_INET || address->sa_family == AF_INET6);
}

int connect(int socket, const struct sockaddr *address, socklen_t size) {
    static int (*next)(int, const struct sockaddr *, socklen_t);
    if (is_remote(address)) {
        note("connect", "");
        errno = ENETUNREACH;
        return -1;
    }
    if (!next) next = (int (*)(int, const struct sockaddr *, socklen_t))dlsym(RTLD_NEXT, "connect");
    return next(socket, address, size);
}

ssize_t sendto(int socket, const void *data, size_t size, int flags, const struct sockaddr *address, socklen_t length) {
    static ssize_t (*next)(int, const void *, size_t, int, const struct sockaddr *, socklen_t);
    if (is_remote(address)) {
        note("sendto", "");
        errno = ENETUNREACH;
        return -1;
    }
    if (!next)
        next = (ssize_t(*)(int, const void *, size_t, int, const struct sockaddr *, socklen_t))dlsym(RTLD_NEXT, "sendto");
    return next(socket, data, size, flags, address, length);
}
