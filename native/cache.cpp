// Fills rpc-server's `-c` cache from GGUF files, and checks what is in it, in a process
// of its own: a hostile GGUF that crashes ggml's reader takes this one along.
//
//   worker-cache add DIRECTORY LIMIT ROOM MODEL...
//   worker-cache verify DIRECTORY LARGEST < NAMES
//
// One JSON object a line on stdout. Exit status 0 when it came to {"end": true}; what went
// wrong before is {"error": ..., "hint": ...}.
//
// `add`: each tensor that a head would ask for by its hash becomes DIRECTORY/<hash>. LIMIT is
// how many bytes of models the cache may hold, ROOM how many may be written; nothing is written
// when that is not enough. What it has begun to write is named .add-*; the caller sees to it
// that there is one `add` at a time, and removes what a killed one left.
//
// `verify`: whether the content of each file has the hash that is its name. Names are a line each. A file of more than
// LARGEST bytes is wrong without being read.

#include "ggml.h"
#include "gguf.h"
#include "line.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cctype>
#include <cerrno>
#include <cinttypes>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace {

// Bytes above which a head asks by hash (HASH_THRESHOLD in ggml-rpc.cpp).
constexpr uint64_t THRESHOLD = 10 * 1024 * 1024;
// Bytes read at a time: they stay in the processor's cache until they are hashed.
constexpr size_t BLOCK = 1 << 20;
// Each hash is a chain of multiplications, so one thread does one at a time. Two threads a core, for one waits for the
// disk while the other hashes; with more of them than this no disk keeps up.
constexpr size_t PER_CORE = 2, MAX_THREADS = 4;
// Address space, so that a hostile GGUF cannot take the machine's memory. Large vocabularies need some 100 MB.
constexpr rlim_t MEMORY = 4ULL << 30;

struct Failure : std::runtime_error {
    Failure(const std::string &message, std::string hint) : std::runtime_error(message), hint(std::move(hint)) {}
    std::string hint;
};

Failure refused(const std::string &what, int number, const std::string &hint) {
    std::string reason = strerror(number);
    reason[0] = static_cast<char>(tolower(reason[0]));
    return {what + ": " + reason, hint};
}

Failure unwritable(int number) {
    return refused("cannot write to the cache", number, "make room on that disk, or name another with LLAMA_CACHE");
}

std::string mebibytes(uint64_t bytes) { return std::to_string((bytes + (1 << 20) - 1) >> 20) + " MiB"; }

class File {
  public:
    explicit File(int descriptor) : fd(descriptor) {}
    ~File() {
        if (fd >= 0) close(fd);
    }
    File(const File &) = delete;
    const int fd;
};

// --- hashing ----------------------------------------------------------------

// FNV-1a with 64 bits, as rpc-server names its files.
uint64_t fnv(const std::vector<uint8_t> &data, size_t size, uint64_t hash) {
    for (size_t at = 0; at < size; at++) {
        hash = (hash ^ data[at]) * 0x100000001b3ULL;
    }
    return hash;
}

// The hash of what `each` reads, until it has no more.
uint64_t hash_of(const std::function<size_t(std::vector<uint8_t> &)> &each) {
    std::vector<uint8_t> block(BLOCK);
    uint64_t hash = 0xcbf29ce484222325ULL;
    while (const size_t size = each(block)) hash = fnv(block, size, hash);
    return hash;
}

std::string hex(uint64_t hash) {
    char digits[17];
    snprintf(digits, sizeof(digits), "%016" PRIx64, hash);
    return digits;
}

// Do `job(0)` to `job(count - 1)` on several cores; the first failure ends it.
void in_parallel(size_t count, const std::function<void(size_t)> &job) {
    cpu_set_t cores;
    const size_t usable = sched_getaffinity(0, sizeof(cores), &cores) == 0 ? CPU_COUNT(&cores) : 1;
    std::atomic<size_t> next{0};
    std::atomic<bool> failed{false};
    std::unique_ptr<Failure> failure;
    std::vector<std::thread> threads;
    for (size_t n = std::min({PER_CORE * usable, MAX_THREADS, count}); n > 0; n--) {
        threads.emplace_back([&] {
            for (size_t at; !failed && (at = next++) < count;) {
                try {
                    job(at);
                } catch (const Failure &one) {
                    if (!failed.exchange(true)) failure = std::make_unique<Failure>(one);
                }
            }
        });
    }
    for (std::thread &thread : threads) thread.join();
    if (failure) throw *failure;
}

// --- add --------------------------------------------------------------------

struct Model {
    explicit Model(const std::string &named) : path(named) {
        const int fd = open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);  // a FIFO would be waited for
        file = fd < 0 ? nullptr : fdopen(fd, "rb");
        if (!file || fstat(fd, &status) != 0) throw refused("cannot open " + path, errno, "name a GGUF file");
        if (!S_ISREG(status.st_mode)) throw Failure(path + " is no file", "name a GGUF file");
    }
    ~Model() {
        if (file) fclose(file);
    }
    Model(const Model &) = delete;

    size_t read(std::vector<uint8_t> &block, uint64_t offset, uint64_t left) const {
        const ssize_t size = pread(fileno(file), block.data(), std::min<uint64_t>(block.size(), left), offset);
        if (size < 0) throw refused("cannot read " + path, errno, "the disk that it is on may be damaged");
        if (size == 0) throw changed();
        return size;
    }

    // Its bytes would not be those that were hashed.
    void check_unchanged() const {
        struct stat now;
        if (fstat(fileno(file), &now) != 0 || now.st_size != status.st_size ||
            now.st_mtim.tv_sec != status.st_mtim.tv_sec || now.st_mtim.tv_nsec != status.st_mtim.tv_nsec) {
            throw changed();
        }
    }

    Failure changed() const {
        return {path + " changed while it was read", "wait until it is copied, then add it again"};
    }

    const std::string path;
    FILE *file;
    struct stat status = {};
};

struct Tensor {
    const Model *model;
    std::string name;
    uint64_t offset, size, hash;
};

// The tensors of `model` that a head would ask for; adds the bytes of the others to `small`.
void list_tensors(const Model &model, std::vector<Tensor> &tensors, uint64_t &small) {
    const gguf_init_params params = {/*no_alloc=*/true, /*ctx=*/nullptr};
    gguf_context *found = gguf_init_from_file_ptr(model.file, params);
    if (!found) throw Failure(model.path + " is no GGUF model, or a damaged one", "compare it with its source");
    const uint64_t start = gguf_get_data_offset(found), end = model.status.st_size;
    for (int64_t at = 0; at < gguf_get_n_tensors(found); at++) {
        const uint64_t offset = gguf_get_tensor_offset(found, at), size = gguf_get_tensor_size(found, at);
        if (start > end || offset > end - start || size > end - start - offset) {
            throw Failure(model.path + " is cut short", "copy it again");
        }
        if (size > THRESHOLD) {
            tensors.push_back({&model, gguf_get_tensor_name(found, at), start + offset, size, 0});
        } else {
            small += size;
        }
    }
    gguf_free(found);
}

// Whether a file of that name and size is there; then it counts as just used.
bool is_there(int directory, const Tensor &tensor) {
    struct stat status;
    const std::string name = hex(tensor.hash);
    if (fstatat(directory, name.c_str(), &status, AT_SYMLINK_NOFOLLOW) != 0 || !S_ISREG(status.st_mode) ||
        static_cast<uint64_t>(status.st_size) != tensor.size) {
        return false;
    }
    utimensat(directory, name.c_str(), nullptr, AT_SYMLINK_NOFOLLOW);
    return true;
}

void copy(const Tensor &tensor, int to) {
    off_t from = tensor.offset;
    uint64_t left = tensor.size;
    while (left > 0) {  // shares the blocks where the file system can and they lie right
        const ssize_t size = copy_file_range(fileno(tensor.model->file), &from, to, nullptr, left, 0);
        if (size <= 0) break;
        left -= size;
    }
    std::vector<uint8_t> block(left > 0 ? BLOCK : 0);
    while (left > 0) {
        const size_t size = tensor.model->read(block, from, left);
        for (size_t done = 0; done < size;) {
            const ssize_t written = write(to, block.data() + done, size - done);
            if (written < 0) throw unwritable(errno);
            done += written;
        }
        from += size;
        left -= size;
    }
}

// The file gets its name when all of it is on the disk: rpc-server believes what it finds.
void store(int directory, const Tensor &tensor, const std::string &temporary) {
    const File file(openat(directory, temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644));
    if (file.fd < 0) throw unwritable(errno);
    try {
        copy(tensor, file.fd);
        tensor.model->check_unchanged();
        struct stat status;
        if (geteuid() == 0 && fstat(directory, &status) == 0 && fchown(file.fd, status.st_uid, status.st_gid) != 0) {
            throw refused("cannot give a file to the owner of the cache", errno, "run this as that user");
        }
        if (fsync(file.fd) != 0 || renameat(directory, temporary.c_str(), directory, hex(tensor.hash).c_str()) != 0) {
            throw unwritable(errno);
        }
    } catch (const Failure &) {
        unlinkat(directory, temporary.c_str(), 0);
        throw;
    }
}

void add(int directory, uint64_t limit, uint64_t room, const std::vector<std::string> &paths) {
    std::vector<std::unique_ptr<Model>> models;
    std::vector<Tensor> tensors;
    uint64_t small = 0, all = 0;
    for (const std::string &path : paths) {
        Line().text("reading", path).say(stdout);
        models.push_back(std::make_unique<Model>(path));
        list_tensors(*models.back(), tensors, small);
    }
    for (const Tensor &tensor : tensors) all += tensor.size;
    Line().number("bytes", all).number("small", small).say(stdout);
    if (all > limit) {
        throw Failure("the cache may hold " + mebibytes(limit) + ", and these are " + mebibytes(all),
                      "raise --max-size here and --cache-size of the worker");
    }
    const auto keep = [&](size_t at) {
        const bool there = is_there(directory, tensors[at]);
        if (!there) store(directory, tensors[at], ".add-" + std::to_string(at));
        Line line;
        line.text("tensor", tensors[at].name).number("bytes", tensors[at].size).text("hash", hex(tensors[at].hash));
        line.text("state", there ? "present" : "added").say(stdout);
    };
    // Where there is room for all of them whatever is there already, each is written while it is still in memory.
    const bool enough = all <= room;
    in_parallel(tensors.size(), [&](size_t at) {
        Tensor &tensor = tensors[at];
        uint64_t done = 0;
        tensor.hash = hash_of([&](std::vector<uint8_t> &block) {
            if (done == tensor.size) return size_t{0};
            const size_t size = tensor.model->read(block, tensor.offset + done, tensor.size - done);
            done += size;
            return size;
        });
        if (enough) keep(at);
    });
    if (!enough) {
        std::map<uint64_t, uint64_t> missing;
        for (const Tensor &tensor : tensors) {
            if (!is_there(directory, tensor)) missing[tensor.hash] = tensor.size;
        }
        uint64_t needed = 0;
        for (const auto &one : missing) needed += one.second;
        if (needed > room) {
            throw Failure("no room for " + mebibytes(needed) + " in the cache: " + mebibytes(room) + " can be used",
                          "make room on that disk, or `worker cache prune --max-size SIZE`");
        }
        in_parallel(tensors.size(), keep);
    }
    fsync(directory);
}

// --- verify -----------------------------------------------------------------

const char *judge(int directory, const std::string &name, uint64_t largest, uint64_t &bytes) {
    constexpr int FLAGS = O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;
    int fd = openat(directory, name.c_str(), FLAGS | O_NOATIME);  // looking at it is no use of it
    if (fd < 0 && errno == EPERM) fd = openat(directory, name.c_str(), FLAGS);
    if (fd < 0) return errno == ENOENT ? "gone" : "wrong";
    const File file(fd);
    struct stat status;
    if (fstat(fd, &status) != 0 || !S_ISREG(status.st_mode)) return "wrong";
    const uint64_t whole = status.st_size;  // no more is read, or one that grows would never end
    if (whole > largest) return "wrong";
    bool readable = true;
    const uint64_t hash = hash_of([&](std::vector<uint8_t> &block) {
        const ssize_t size = read(fd, block.data(), std::min<uint64_t>(block.size(), whole - bytes));
        readable = size >= 0;
        bytes += readable ? size : 0;
        return static_cast<size_t>(readable ? size : 0);
    });
    return readable && hex(hash) == name ? "whole" : "wrong";
}

void verify(int directory, uint64_t largest) {
    std::vector<std::string> names;
    for (std::string name; std::getline(std::cin, name);) names.push_back(name);
    in_parallel(names.size(), [&](size_t at) {
        uint64_t bytes = 0;
        const char *state = judge(directory, names[at], largest, bytes);
        Line().text("file", names[at]).number("bytes", bytes).text("state", state).say(stdout);
    });
}

}  // namespace

int main(int argc, char **argv) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    const rlimit none = {0, 0}, memory = {MEMORY, MEMORY};
    setrlimit(RLIMIT_CORE, &none);
    setrlimit(RLIMIT_AS, &memory);
    if (argc < 3) return 2;
    const std::string mode = argv[1];
    const File directory(open(argv[2], O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    try {
        if (directory.fd < 0) {
            throw refused(std::string("cannot open ") + argv[2], errno, "name another place with LLAMA_CACHE");
        }
        if (mode == "add" && argc > 5) {
            add(directory.fd, strtoull(argv[3], nullptr, 10), strtoull(argv[4], nullptr, 10), {argv + 5, argv + argc});
        } else if (mode == "verify" && argc > 3) {
            verify(directory.fd, strtoull(argv[3], nullptr, 10));
        } else {
            return 2;
        }
    } catch (const Failure &failure) {
        Line().text("error", failure.what()).text("hint", failure.hint).say(stdout);
        return 1;
    }
    Line().yes("end").say(stdout);
    return 0;
}
