/* A stand-in for NVIDIA's libnvidia-ml.so.1 that says what a script file says.
 *
 * Names, argument types, struct layouts and return codes are nvml.h's. NVML_STUB_SCRIPT names the script,
 * which is read again at any call after it was replaced. Without a script there is no driver (code 9).
 * A line each:
 *
 *   driver 580.159.04            the driver's version
 *   epoch 2                      another number than at nvmlInit: the driver was reloaded, and says code 1 to
 *                                all until the library is shut down and initialised anew
 *   cards 4                      how many there are
 *   card 0 total 17179869184 used 5000000000 reserved 400000000 temp 40 power 90000 limit 700000 throttle 4
 *   name 0 NVIDIA L4             to the end of the line
 *   uuid 0 GPU-1
 *   migmode 0 1                  MIG is on; at most 7 instances
 *   card 0/1 total ...           its instance 1 (name, uuid, proc likewise)
 *   proc 0 4242 7000000000       a program that computes; `-` for a size that is not told
 *   draw 0 4243 1000000          a program that draws
 *   error FUNCTION CODE [CARD]   FUNCTION without _vN means all its versions; `*` all functions
 *   more 0 7000000000 4242       a program's memory beside what `used` says; of an instance likewise
 *   hang FUNCTION                blocks until the script says otherwise, 60 s at most; meanwhile there is a
 *                                file SCRIPT.hanging
 *
 * A file SCRIPT.server, where there is one, is read after it: a fake server writes its own use there.
 * `used` is without the reserved part, as the second version of the memory call tells it. */

#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { OK, UNINITIALIZED, INVALID, NOT_SUPPORTED, NO_PERMISSION, NOT_FOUND = 6, TOO_SMALL, NOT_LOADED = 9,
       VERSION_MISMATCH = 25 };
enum { CARDS = 16, INSTANCES = 7, PROCESSES = 64, RULES = 64, WHOLE = INSTANCES };

typedef unsigned long long u64;
typedef struct { unsigned pid; u64 used; unsigned gpu_instance, compute_instance; } Process; /* v2 and v3 */
typedef struct { u64 total, free, used; } Memory;
typedef struct { unsigned version; u64 total, reserved, free, used; } Memory2;
typedef struct { unsigned version, sensor; int celsius; } Temperature;
typedef struct { unsigned gpu, memory; } Utilization;

typedef struct {
    int here;
    u64 total, used, reserved, throttle;
    unsigned temp, power, limit, util;
    char name[96], uuid[96];
    unsigned computing, drawing;
    Process compute[PROCESSES], draw[PROCESSES];
} Device;

typedef struct { char function[64]; int code, card, instance, hang; } Rule;

static struct {
    int loaded, cards, epoch, rules, migmode[CARDS];
    char driver[80];
    Device devices[CARDS][INSTANCES + 1]; /* the last one is the whole card */
    Rule rule[RULES];
} script;
static struct stat seen, seen_more;
static int inits, init_epoch;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static int place(const char *text, int *card, int *instance) {
    *instance = WHOLE;
    return sscanf(text, "%d/%d", card, instance) >= 1 && *card >= 0 && *card < CARDS && *instance >= 0 &&
           *instance <= WHOLE;
}

static void take_card(Device *device, char *words) {
    char *rest, *key, *value;
    device->here = 1;
    for (key = strtok_r(words, " \n", &rest); key && (value = strtok_r(NULL, " \n", &rest));
         key = strtok_r(NULL, " \n", &rest)) {
        u64 number = strtoull(value, NULL, 10);
        if (!strcmp(key, "total")) device->total = number;
        else if (!strcmp(key, "used")) device->used = number;
        else if (!strcmp(key, "reserved")) device->reserved = number;
        else if (!strcmp(key, "temp")) device->temp = (unsigned)number;
        else if (!strcmp(key, "power")) device->power = (unsigned)number;
        else if (!strcmp(key, "limit")) device->limit = (unsigned)number;
        else if (!strcmp(key, "throttle")) device->throttle = number;
        else if (!strcmp(key, "util")) device->util = (unsigned)number;
    }
}

static void take_process(Process *into, unsigned *count, const char *words, int instance) {
    char size[32];
    unsigned pid;
    if (*count == PROCESSES || sscanf(words, "%u %31s", &pid, size) != 2) return;
    unsigned none = instance == WHOLE ? UINT32_MAX : (unsigned)instance;
    into[(*count)++] = (Process){pid, *size == '-' ? UINT64_MAX : strtoull(size, NULL, 10), none, none};
}

/* A card has no more memory than it has: what is too much there was not given. */
static void take_more(Device *device, const char *words, int instance) {
    char process[64];
    unsigned pid;
    u64 bytes, left = device->total - device->reserved - device->used;
    if (sscanf(words, "%llu %u", &bytes, &pid) != 2) return;
    device->used += bytes < left ? bytes : left;
    snprintf(process, sizeof process, "%u %llu", pid, bytes);
    take_process(device->compute, &device->computing, process, instance);
}

static void take_line(char *line) {
    char word[64], where[64];
    int at = 0, card, instance, number;
    if (sscanf(line, "%63s %63s %n", word, where, &at) < 2) return;
    char *rest = line + (at ? at : (int)strlen(line));
    if (!strcmp(word, "driver")) strcpy(script.driver, where);
    else if (!strcmp(word, "epoch")) script.epoch = atoi(where);
    else if (!strcmp(word, "cards")) script.cards = atoi(where);
    else if ((!strcmp(word, "error") || !strcmp(word, "hang")) && script.rules < RULES) {
        Rule *rule = &script.rule[script.rules++];
        char which[64] = "";
        *rule = (Rule){.card = -1, .instance = WHOLE, .hang = *word == 'h'};
        strcpy(rule->function, where);
        if (sscanf(rest, "%d %63s", &number, which) >= 1) rule->code = number;
        if (*which) place(which, &rule->card, &rule->instance);
    } else if (place(where, &card, &instance)) {
        Device *device = &script.devices[card][instance];
        rest[strcspn(rest, "\n")] = 0;
        if (!strcmp(word, "card")) take_card(device, rest);
        else if (!strcmp(word, "name")) snprintf(device->name, sizeof device->name, "%s", rest);
        else if (!strcmp(word, "uuid")) snprintf(device->uuid, sizeof device->uuid, "%s", rest);
        else if (!strcmp(word, "migmode")) script.migmode[card] = atoi(rest);
        else if (!strcmp(word, "proc")) take_process(device->compute, &device->computing, rest, instance);
        else if (!strcmp(word, "draw")) take_process(device->draw, &device->drawing, rest, instance);
        else if (!strcmp(word, "more")) take_more(device, rest, instance);
    }
}

static int same(const struct stat *now, const struct stat *then) {
    return now->st_ino == then->st_ino && now->st_size == then->st_size &&
           now->st_mtim.tv_sec == then->st_mtim.tv_sec && now->st_mtim.tv_nsec == then->st_mtim.tv_nsec;
}

static int take_file(const char *path) {
    char line[1024];
    FILE *file = fopen(path, "r");
    if (!file) return 0;
    while (fgets(line, sizeof line, file)) take_line(line);
    fclose(file);
    return 1;
}

/* The lock is held. */
static void read_script(void) {
    const char *path = getenv("NVML_STUB_SCRIPT");
    char more[4096] = "";
    struct stat now, now_more;
    if (path) snprintf(more, sizeof more, "%s.server", path);
    if (stat(more, &now_more)) memset(&now_more, 0, sizeof now_more);
    if (!path || stat(path, &now)) {
        script.loaded = 0;
        memset(&seen, 0, sizeof seen);
        return;
    }
    if (script.loaded && same(&now, &seen) && same(&now_more, &seen_more)) return;
    memset(&script, 0, sizeof script);
    if (!take_file(path)) return;
    take_file(more);
    script.loaded = 1;
    seen = now;
    seen_more = now_more;
}

static int concerns(const Rule *rule, const char *function, int card, int instance) {
    size_t length = strlen(rule->function);
    if (rule->card >= 0 && (rule->card != card || rule->instance != instance)) return 0;
    if (!strcmp(rule->function, "*") || !strcmp(rule->function, function)) return 1;
    return !strncmp(rule->function, function, length) && !strncmp(function + length, "_v", 2);
}

static const Rule *rule_for(const char *function, int card, int instance, int hang) {
    for (int i = 0; i < script.rules; i++)
        if (script.rule[i].hang == hang && concerns(&script.rule[i], function, card, instance))
            return &script.rule[i];
    return NULL;
}

/* Says to whoever tests that a call hangs now, or no more. */
static void tell(int hanging) {
    char path[4096];
    FILE *file = NULL;
    snprintf(path, sizeof path, "%s.hanging", getenv("NVML_STUB_SCRIPT"));
    if (!hanging) unlink(path);
    else if ((file = fopen(path, "w"))) fclose(file);
}

/* Takes the lock; whoever called gives it back through `leave`. While it hangs, others may go on. */
static int enter(const char *function, int card, int instance) {
    const struct timespec moment = {0, 10 * 1000 * 1000};
    pthread_mutex_lock(&lock);
    read_script();
    int waited;
    for (waited = 0; waited < 6000 && rule_for(function, card, instance, 1); waited++) {
        if (!waited) tell(1);
        pthread_mutex_unlock(&lock);
        nanosleep(&moment, NULL);
        pthread_mutex_lock(&lock);
        read_script();
    }
    if (waited) tell(0);
    if (!script.loaded) return NOT_LOADED;
    const Rule *rule = rule_for(function, card, instance, 0);
    return rule ? rule->code : OK;
}

static int leave(int code) {
    pthread_mutex_unlock(&lock);
    return code;
}

static int began(void) { return inits && init_epoch == script.epoch ? OK : UNINITIALIZED; }

/* Handles are numbers: no program may look behind one. */
static void *handle_of(int card, int instance) {
    return (void *)(uintptr_t)(4096 + card * (INSTANCES + 1) + instance);
}

static Device *device_of(const char *function, void *handle, int *code) {
    int number = (int)((uintptr_t)handle - 4096), card = number / (INSTANCES + 1);
    int instance = number % (INSTANCES + 1);
    *code = enter(function, card, instance);
    if (!*code) *code = began();
    if (*code) return NULL;
    Device *device = &script.devices[card][instance];
    if (number < 0 || card >= script.cards || !device->here) *code = INVALID;
    return *code ? NULL : device;
}

#define DEVICE int code; Device *device = device_of(__func__, handle, &code); if (!device) return leave(code)
#define CARD DEVICE; int number = (int)((uintptr_t)handle - 4096); \
    (void)device; \
    if (number % (INSTANCES + 1) != WHOLE) return leave(NOT_SUPPORTED)

static int init(const char *function) {
    int code = enter(function, -1, WHOLE);
    if (code) return leave(code);
    if (!inits) init_epoch = script.epoch;
    inits++;
    return leave(OK);
}

int nvmlInit(void) { return init(__func__); }
int nvmlInit_v2(void) { return init(__func__); }
int nvmlInitWithFlags(unsigned flags) { (void)flags; return init(__func__); }

int nvmlShutdown(void) {
    int code = enter(__func__, -1, WHOLE);
    if (!inits) return leave(UNINITIALIZED);
    inits--;
    return leave(code);
}

const char *nvmlErrorString(int code) {
    return code == OK ? "Success" : code == 999 ? "Unknown Error" : "An error of the stub";
}

static int version(const char *function, const char *text, char *into, unsigned length) {
    int code = enter(function, -1, WHOLE);
    if (!code) code = began();
    if (!code) snprintf(into, length, "%s", text);
    return leave(code);
}

int nvmlSystemGetDriverVersion(char *into, unsigned length) {
    return version(__func__, script.driver, into, length);
}

int nvmlSystemGetNVMLVersion(char *into, unsigned length) { return version(__func__, "13.0", into, length); }

static int count_cards(const char *function, unsigned *count) {
    int code = enter(function, -1, WHOLE);
    if (!code) code = began();
    if (!code) *count = (unsigned)script.cards;
    return leave(code);
}

int nvmlDeviceGetCount(unsigned *count) { return count_cards(__func__, count); }
int nvmlDeviceGetCount_v2(unsigned *count) { return count_cards(__func__, count); }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    int code = enter(__func__, (int)index, WHOLE);
    if (!code) code = began();
    if (!code && index >= (unsigned)script.cards) code = INVALID;
    if (!code) *handle = handle_of((int)index, WHOLE);
    return leave(code);
}

int nvmlDeviceGetMemoryInfo(void *handle, Memory *info) {
    DEVICE;
    u64 used = device->used + device->reserved;
    *info = (Memory){device->total, device->total - used, used};
    return leave(OK);
}

int nvmlDeviceGetMemoryInfo_v2(void *handle, Memory2 *info) {
    DEVICE;
    if (info->version != (sizeof(Memory2) | 2u << 24)) return leave(VERSION_MISMATCH);
    u64 left = device->total - device->used - device->reserved;
    *info = (Memory2){info->version, device->total, device->reserved, left, device->used};
    return leave(OK);
}

int nvmlDeviceGetName(void *handle, char *into, unsigned length) {
    DEVICE;
    snprintf(into, length, "%s", device->name);
    return leave(OK);
}

int nvmlDeviceGetUUID(void *handle, char *into, unsigned length) {
    DEVICE;
    snprintf(into, length, "%s", device->uuid);
    return leave(OK);
}

static int list(const Process *from, unsigned there, unsigned *count, Process *into) {
    unsigned room = *count;
    *count = there;
    if (there > room || (there && !into)) return leave(TOO_SMALL);
    if (there) memcpy(into, from, there * sizeof *from);
    return leave(OK);
}

#define LISTS(function, from, there) \
    int function(void *handle, unsigned *count, Process *into) { \
        DEVICE; \
        return list(device->from, device->there, count, into); \
    }
LISTS(nvmlDeviceGetComputeRunningProcesses_v2, compute, computing)
LISTS(nvmlDeviceGetComputeRunningProcesses_v3, compute, computing)
LISTS(nvmlDeviceGetGraphicsRunningProcesses_v2, draw, drawing)
LISTS(nvmlDeviceGetGraphicsRunningProcesses_v3, draw, drawing)

/* Power is told of instances as well, so that a test shows who would count it twice; the rest is not. */
#define TELLS(of_what, function, type, field) \
    int function(void *handle, type *into) { \
        of_what; \
        *into = device->field; \
        return leave(OK); \
    }
TELLS(DEVICE, nvmlDeviceGetPowerUsage, unsigned, power)
TELLS(DEVICE, nvmlDeviceGetEnforcedPowerLimit, unsigned, limit)
TELLS(DEVICE, nvmlDeviceGetPowerManagementLimit, unsigned, limit)
TELLS(CARD, nvmlDeviceGetCurrentClocksThrottleReasons, u64, throttle)
TELLS(CARD, nvmlDeviceGetCurrentClocksEventReasons, u64, throttle)

int nvmlDeviceGetTemperature(void *handle, unsigned sensor, unsigned *into) {
    CARD;
    if (sensor) return leave(INVALID);
    *into = device->temp;
    return leave(OK);
}

int nvmlDeviceGetTemperatureV(void *handle, Temperature *into) {
    CARD;
    if (into->version != (sizeof(Temperature) | 1u << 24)) return leave(VERSION_MISMATCH);
    into->celsius = (int)device->temp;
    return leave(OK);
}

int nvmlDeviceGetUtilizationRates(void *handle, Utilization *into) {
    CARD;
    *into = (Utilization){device->util, 0};
    return leave(OK);
}

int nvmlDeviceGetMigMode(void *handle, unsigned *now, unsigned *pending) {
    CARD;
    *now = *pending = (unsigned)script.migmode[number / (INSTANCES + 1)];
    return leave(OK);
}

int nvmlDeviceGetMaxMigDeviceCount(void *handle, unsigned *count) {
    CARD;
    *count = script.migmode[number / (INSTANCES + 1)] ? INSTANCES : 0;
    return leave(OK);
}

int nvmlDeviceGetMigDeviceHandleByIndex(void *handle, unsigned index, void **instance) {
    CARD;
    int card = number / (INSTANCES + 1);
    if (index >= INSTANCES || !script.devices[card][index].here) return leave(NOT_FOUND);
    *instance = handle_of(card, (int)index);
    return leave(OK);
}

int nvmlDeviceIsMigDeviceHandle(void *handle, unsigned *is) {
    DEVICE;
    *is = ((uintptr_t)handle - 4096) % (INSTANCES + 1) != WHOLE;
    return leave(OK);
}
