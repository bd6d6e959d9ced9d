// Loads ggml's backends as the server would and says what it finds, in a process
// of its own: a library or a driver that crashes or hangs takes this one along.
//
//   worker-probe load [--left DESCRIPTION]... [--untried NAME]... LIBRARY...
//   worker-probe vulkan
//
// One JSON object a line on stdout, written before each step that may be the last:
// the last {"step": ...} of a probe that died names the culprit. What a backend
// prints goes to stderr. Exit status 0 when it came to {"end": true}.
//
// `load`: libraries named libggml-cpu-* compete by their score, and the best is
// loaded; so is every other one. Each device that the server might serve is opened
// and computes something whose result is known, except one whose description is
// given with --left (it is known to be slow, and may hang) or its name with --untried.

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml.h"
#include "line.h"

#include <dlfcn.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmath>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#ifdef WORKER_VULKAN
#define VK_NO_PROTOTYPES
#include <vulkan/vulkan.h>
#endif

namespace {

// Seconds: for a probe that nobody watches. The launcher kills earlier.
constexpr unsigned LIFETIME = 120;

FILE *out;

void step(const char *what, const std::string &of) { Line().text("step", what).text("of", of).say(out); }

// --- load -------------------------------------------------------------------

// The last complaint of a backend: it is the reason when a library offers nothing.
std::string complaint;

void listen(ggml_log_level level, const char *text, void *) {
    fputs(text, stderr);
    if (level == GGML_LOG_LEVEL_ERROR || level == GGML_LOG_LEVEL_WARN) {
        complaint = text;
    }
}

// As many columns as a short prompt: what drivers compile for one or a few takes them five times as long.
constexpr int DEPTH = 256, ROWS = 32, COLUMNS = 16;

// -1, 0 and 1 in no pattern: every type holds these, and sums of them, to less than a half.
float value(int row, int column) { return static_cast<float>((row * 7 + column * 5 + (row * column) % 11) % 3 - 1); }

std::string multiply(ggml_backend_t backend, ggml_backend_dev_t device, ggml_type type) {
    ggml_context *context = ggml_init({ggml_tensor_overhead() * 8 + ggml_graph_overhead(), nullptr, true});
    ggml_tensor *weights = ggml_new_tensor_2d(context, type, DEPTH, ROWS);
    ggml_tensor *input = ggml_new_tensor_2d(context, GGML_TYPE_F32, DEPTH, COLUMNS);
    ggml_tensor *product = ggml_mul_mat(context, weights, input);
    ggml_cgraph *graph = ggml_new_graph(context);
    ggml_build_forward_expand(graph, product);
    std::string trouble;
    if (ggml_backend_dev_supports_op(device, product)) {
        ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors(context, backend);
        if (!buffer) {
            ggml_free(context);
            return "has no memory to give";
        }
        std::vector<float> a(DEPTH * ROWS), b(DEPTH * COLUMNS), c(ROWS * COLUMNS);
        for (int row = 0; row < ROWS; row++) {
            for (int k = 0; k < DEPTH; k++) a[row * DEPTH + k] = value(row, k);
        }
        for (int column = 0; column < COLUMNS; column++) {
            for (int k = 0; k < DEPTH; k++) b[column * DEPTH + k] = value(column + 100, k);
        }
        std::vector<uint8_t> packed(ggml_nbytes(weights));
        ggml_quantize_chunk(type, a.data(), packed.data(), 0, ROWS, DEPTH, nullptr);
        ggml_backend_tensor_set(weights, packed.data(), 0, packed.size());
        ggml_backend_tensor_set(input, b.data(), 0, ggml_nbytes(input));
        if (ggml_backend_graph_compute(backend, graph) != GGML_STATUS_SUCCESS) {
            trouble = "cannot compute: " + complaint;
        } else {
            ggml_backend_tensor_get(product, c.data(), 0, ggml_nbytes(product));
            for (int column = 0; column < COLUMNS; column++) {
                for (int row = 0; row < ROWS; row++) {
                    float expected = 0;
                    for (int k = 0; k < DEPTH; k++) expected += a[row * DEPTH + k] * b[column * DEPTH + k];
                    // The sums are whole numbers: half a one off is wrong in any precision. Not `>`: for NaN.
                    if (!(std::fabs(c[column * ROWS + row] - expected) < 0.5F)) {
                        trouble = std::string("computes wrong numbers (") + ggml_type_name(type) + ")";
                    }
                }
            }
        }
        ggml_backend_buffer_free(buffer);
    }
    ggml_free(context);
    return trouble;
}

// Empty when the device does as the server will ask of it; else what is wrong.
std::string trial(ggml_backend_dev_t device) {
    ggml_backend_t backend = ggml_backend_dev_init(device, nullptr);
    if (!backend) {
        return "cannot be opened: " + complaint;
    }
    // ggml's threads wait for each other without sleep: where they are more than processors, that takes ten times as long.
    ggml_backend_reg_t registered = ggml_backend_dev_backend_reg(device);
    if (void *found = ggml_backend_reg_get_proc_address(registered, "ggml_backend_set_n_threads")) {
        reinterpret_cast<ggml_backend_set_n_threads_t>(found)(backend, 1);
    }
    std::string trouble;
    for (ggml_type type : {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_Q8_0}) {
        if (trouble.empty()) trouble = multiply(backend, device, type);
    }
    ggml_backend_free(backend);
    return trouble;
}

const char *type_name(ggml_backend_dev_t device) {
    switch (ggml_backend_dev_type(device)) {
        case GGML_BACKEND_DEVICE_TYPE_CPU: return "cpu";
        case GGML_BACKEND_DEVICE_TYPE_GPU: return "gpu";
        case GGML_BACKEND_DEVICE_TYPE_IGPU: return "igpu";
        case GGML_BACKEND_DEVICE_TYPE_ACCEL: return "accel";
        default: return "other";
    }
}

bool is_variant(const std::string &path) {
    return path.substr(path.rfind('/') + 1).rfind("libggml-cpu-", 0) == 0;
}

// The library's score, 0 when this machine cannot run it, -1 when it cannot be loaded.
int score(const std::string &path) {
    step("open", path);
    void *handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
        Line().text("library", path).text("state", "failed").text("detail", dlerror()).say(out);
        return -1;
    }
    auto function = reinterpret_cast<int (*)()>(dlsym(handle, "ggml_backend_score"));
    const int found = function ? function() : 0;
    dlclose(handle);  // as ggml does: of all that compete only the best stays
    Line().text("library", path).text("state", found ? "fits" : "unsupported").number("score", found).say(out);
    return found;
}

bool load(const std::string &path) {
    step("load", path);
    complaint.clear();
    void *handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);  // for its reason: ggml keeps that to itself
    if (!handle) {
        Line().text("library", path).text("state", "failed").text("detail", dlerror()).say(out);
        return false;
    }
    if (!ggml_backend_load(path.c_str())) {
        Line().text("library", path).text("state", "failed").text("detail", complaint).say(out);
        return false;
    }
    Line().text("library", path).text("state", "loaded").text("detail", complaint).say(out);
    return true;
}

bool among(const std::vector<std::string> &words, const char *word) {
    for (const std::string &one : words) {
        if (one == word) return true;
    }
    return false;
}

// The devices of the backend `only`, or those of every backend but `known`; true when each that was tried does well.
bool try_devices(ggml_backend_reg_t only, ggml_backend_reg_t known, const std::vector<std::string> &left,
                 const std::vector<std::string> &untried) {
    bool well = true;
    for (size_t i = 0; i < ggml_backend_dev_count(); i++) {
        ggml_backend_dev_t device = ggml_backend_dev_get(i);
        ggml_backend_reg_t backend = ggml_backend_dev_backend_reg(device);
        if (backend == known || (only && backend != only)) {
            continue;
        }
        const char *name = ggml_backend_dev_name(device);
        const char *description = ggml_backend_dev_description(device);
        step("ask", name);
        ggml_backend_dev_props props = {};
        ggml_backend_dev_get_props(device, &props);
        Line line;
        line.text("device", name).text("description", description).text("type", type_name(device));
        line.text("backend", ggml_backend_reg_name(backend)).text("id", props.device_id ? props.device_id : "");
        line.number("total", props.memory_total).number("free", props.memory_free).say(out);
        if (ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_ACCEL || among(left, description) ||
            among(untried, name)) {
            continue;
        }
        step("try", name);
        complaint.clear();
        const std::string trouble = trial(device);
        Line().text("tried", name).text("trouble", trouble).say(out);
        well = well && trouble.empty();
    }
    return well;
}

int load_all(const std::vector<std::string> &words) {
    std::vector<std::string> left, untried, others;
    std::string best;
    int best_score = 0;
    for (size_t at = 0; at < words.size(); at++) {
        if (words[at] == "--left" && at + 1 < words.size()) {
            left.push_back(words[++at]);
        } else if (words[at] == "--untried" && at + 1 < words.size()) {
            untried.push_back(words[++at]);
        } else if (is_variant(words[at])) {
            const int found = score(words[at]);
            if (found > best_score) {
                best_score = found;
                best = words[at];
            }
        } else {
            others.push_back(words[at]);
        }
    }
    ggml_log_set(listen, nullptr);
    ggml_backend_reg_t cpu = nullptr;
    if (!best.empty() && load(best)) {
        cpu = ggml_backend_reg_get(ggml_backend_reg_count() - 1);
        step("run", best);
        const bool well = try_devices(cpu, nullptr, left, untried);
        Line().text("library", best).text("state", well ? "ran" : "wrong").text("detail", well ? "" : "computes wrong numbers").say(out);
    }
    for (const std::string &path : others) load(path);
    try_devices(nullptr, cpu, left, untried);
    return 0;
}

// --- vulkan -----------------------------------------------------------------

#ifdef WORKER_VULKAN

int no_vulkan(const char *what, const std::string &detail) {
    Line().text("vulkan", what).text("detail", detail).say(out);
    return 0;
}

const char *type_name(VkPhysicalDeviceType type) {
    switch (type) {
        case VK_PHYSICAL_DEVICE_TYPE_CPU: return "cpu";
        case VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU: return "discrete";
        case VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU: return "integrated";
        case VK_PHYSICAL_DEVICE_TYPE_VIRTUAL_GPU: return "virtual";
        default: return "other";
    }
}

std::string version(uint32_t number) {
    return std::to_string(VK_API_VERSION_MAJOR(number)) + "." + std::to_string(VK_API_VERSION_MINOR(number)) + "." +
           std::to_string(VK_API_VERSION_PATCH(number));
}

int vulkan() {
    step("vulkan", "libvulkan.so.1");
    void *handle = dlopen("libvulkan.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
        return no_vulkan("loader", dlerror());
    }
    auto get = reinterpret_cast<PFN_vkGetInstanceProcAddr>(dlsym(handle, "vkGetInstanceProcAddr"));
    auto versions = reinterpret_cast<PFN_vkEnumerateInstanceVersion>(get(nullptr, "vkEnumerateInstanceVersion"));
    auto create = reinterpret_cast<PFN_vkCreateInstance>(get(nullptr, "vkCreateInstance"));
    uint32_t api = VK_API_VERSION_1_0;
    if (versions) versions(&api);
    if (api < VK_API_VERSION_1_2) {  // ggml's limit
        return no_vulkan("old", "the loader knows Vulkan " + version(api));
    }
    VkApplicationInfo application = {VK_STRUCTURE_TYPE_APPLICATION_INFO, nullptr, "worker-probe", 1, nullptr, 0, api};
    VkInstanceCreateInfo info = {};
    info.sType = VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO;
    info.pApplicationInfo = &application;
    VkInstance instance = VK_NULL_HANDLE;
    const VkResult created = create(&info, nullptr, &instance);
    if (created != VK_SUCCESS) {
        return no_vulkan(created == VK_ERROR_INCOMPATIBLE_DRIVER ? "driver" : "instance",
                         "vkCreateInstance: " + std::to_string(created));
    }
    auto enumerate = reinterpret_cast<PFN_vkEnumeratePhysicalDevices>(get(instance, "vkEnumeratePhysicalDevices"));
    auto properties =
        reinterpret_cast<PFN_vkGetPhysicalDeviceProperties2>(get(instance, "vkGetPhysicalDeviceProperties2"));
    auto features = reinterpret_cast<PFN_vkGetPhysicalDeviceFeatures2>(get(instance, "vkGetPhysicalDeviceFeatures2"));
    uint32_t count = 0;
    enumerate(instance, &count, nullptr);
    std::vector<VkPhysicalDevice> devices(count);
    const VkResult listed = enumerate(instance, &count, devices.data());
    if (listed != VK_SUCCESS) {
        return no_vulkan("driver", "vkEnumeratePhysicalDevices: " + std::to_string(listed));
    }
    for (uint32_t at = 0; at < count; at++) {
        VkPhysicalDeviceDriverProperties driver = {};
        driver.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_DRIVER_PROPERTIES;
        VkPhysicalDeviceProperties2 found = {};
        found.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2;
        found.pNext = &driver;
        properties(devices[at], &found);
        VkPhysicalDevice16BitStorageFeatures storage = {};
        storage.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_16BIT_STORAGE_FEATURES;
        VkPhysicalDeviceFeatures2 able = {};
        able.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2;
        able.pNext = &storage;
        features(devices[at], &able);
        Line line;
        line.number("physical", at).text("name", found.properties.deviceName);
        line.text("type", type_name(found.properties.deviceType)).number("vendor", found.properties.vendorID);
        line.text("driver", driver.driverName).text("info", driver.driverInfo);
        line.text("api", version(found.properties.apiVersion));
        if (storage.storageBuffer16BitAccess) line.yes("suitable");  // what ggml asks for first
        line.say(out);
    }
    return 0;
}

#else

int vulkan() { return 1; }

#endif

}  // namespace

int main(int argc, char **argv) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    const rlimit none = {0, 0};
    setrlimit(RLIMIT_CORE, &none);
    alarm(LIFETIME);
    // What drivers print must not stand between our lines.
    out = fdopen(dup(STDOUT_FILENO), "w");
    if (!out || dup2(STDERR_FILENO, STDOUT_FILENO) < 0 || argc < 2) {
        return 1;
    }
    const std::string mode = argv[1];
    int status = 2;
    if (mode == "load") {
        status = load_all(std::vector<std::string>(argv + 2, argv + argc));
    } else if (mode == "vulkan") {
        status = vulkan();
    }
    if (status == 0) Line().yes("end").say(out);
    // Not `return`: what a driver does at its end is no concern of ours.
    _exit(status);
}
