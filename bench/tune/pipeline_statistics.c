/*
 * A Vulkan layer that tells what the driver's compiler made of each compute pipeline: registers, local (spill) memory,
 * code size, whatever VK_KHR_pipeline_executable_properties reports. Built by pipeline_statistics.sh. Environment:
 *
 *   PIPELINE_STATISTICS  file that gets one line per pipeline appended, fields between tabs (default: standard error)
 *   PIPELINE_IR          1: also asks for the compiler's internal representations; they go to that file's name + ".ir"
 *
 * A line has a number, a label, a hash of the SPIR-V, then name=value of each statistic. The label is the pipeline's
 * debug name: the line is printed as soon as that is set. Pipelines without one are printed when they, their device or
 * the process ends, with "module:" and the name of their shader module. Dawn gives names to Vulkan only when told to: see
 * labels.cjs in pipeline_statistics.sh. Drivers without the extension get one line saying so, and no changes.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <vulkan/vk_layer.h>
#include <vulkan/vulkan.h>

/* VkPipelineCreateFlags2CreateInfo of VK_KHR_maintenance5, which older headers lack: where present, it replaces `flags`. */
#define PIPELINE_CREATE_FLAGS_2 ((VkStructureType)1000470005)
typedef struct {
  VkStructureType sType;
  const void *pNext;
  uint64_t flags;
} PipelineCreateFlags2;

typedef struct Instance {
  struct Instance *next;
  void *key;
  VkInstance handle;
  PFN_vkGetInstanceProcAddr getProcAddr;
  PFN_vkDestroyInstance destroyInstance;
} Instance;

typedef struct Device {
  struct Device *next;
  void *key;
  VkDevice handle;
  bool statistics;
  PFN_vkGetDeviceProcAddr getProcAddr;
  PFN_vkDestroyDevice destroyDevice;
  PFN_vkCreateShaderModule createShaderModule;
  PFN_vkDestroyShaderModule destroyShaderModule;
  PFN_vkCreateComputePipelines createComputePipelines;
  PFN_vkDestroyPipeline destroyPipeline;
  PFN_vkSetDebugUtilsObjectNameEXT setObjectName;
  PFN_vkGetPipelineExecutablePropertiesKHR getExecutables;
  PFN_vkGetPipelineExecutableStatisticsKHR getStatistics;
  PFN_vkGetPipelineExecutableInternalRepresentationsKHR getRepresentations;
} Device;

typedef char Label[256];

/* What is remembered of a shader module: its debug name and the hash of its SPIR-V. */
typedef struct Module {
  struct Module *next;
  Device *device;
  VkShaderModule handle;
  uint64_t hash;
  Label name;
} Module;

/* A pipeline whose line is not printed yet, since it has no name. */
typedef struct Pending {
  struct Pending *next;
  Device *device;
  VkPipeline handle;
  unsigned number;
  Label module;
  char *statistics;
  char *representations;
} Pending;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER; /* guards all below */
static Instance *instances;
static Device *devices;
static Module *modules;
static Pending *pending;
static unsigned pipelineCount;

/* ---- small tools ---- */

/* Instances share the loader's dispatch pointer with their physical devices, devices with their queues. */
static void *keyOf(const void *handle) { return *(void *const *)handle; }

static Instance *instanceOf(const void *handle) {
  pthread_mutex_lock(&mutex);
  Instance *it = instances;
  while (it && it->key != keyOf(handle)) it = it->next;
  pthread_mutex_unlock(&mutex);
  return it;
}

static Device *deviceOf(VkDevice handle) {
  pthread_mutex_lock(&mutex);
  Device *it = devices;
  while (it && it->key != keyOf(handle)) it = it->next;
  pthread_mutex_unlock(&mutex);
  return it;
}

static const void *findInChain(const void *chain, VkStructureType type) {
  const VkBaseInStructure *it = chain;
  while (it && it->sType != type) it = it->pNext;
  return it;
}

/* The label in a name from Dawn, such as "DawnDbg=1;Dawn_ComputePipeline_label"; other names stay whole. */
static const char *labelIn(const char *name, const char *prefix) {
  const char *found = strstr(name, prefix);
  return found ? found + strlen(prefix) : name;
}

static uint64_t hashOf(const VkShaderModuleCreateInfo *module) { /* FNV-1a, by words */
  uint64_t hash = 0xcbf29ce484222325u;
  for (size_t i = 0; i < module->codeSize / 4; i++) hash = (hash ^ module->pCode[i]) * 0x100000001b3u;
  return hash;
}

static bool wantsRepresentations(void) {
  const char *value = getenv("PIPELINE_IR");
  return value && *value && strcmp(value, "0") != 0;
}

/* Appends `text` in one write, so that lines of several processes do not mix. */
static void output(const char *suffix, const char *text) {
  const char *name = getenv("PIPELINE_STATISTICS");
  char path[4096];
  int file = STDERR_FILENO;
  if (name && *name && snprintf(path, sizeof path, "%s%s", name, suffix) < (int)sizeof path) {
    file = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
    if (file < 0) file = STDERR_FILENO;
  }
  for (size_t left = strlen(text); left > 0;) {
    const ssize_t n = write(file, text, left);
    if (n <= 0) break;
    text += n;
    left -= (size_t)n;
  }
  if (file != STDERR_FILENO) close(file);
}

/* ---- statistics ---- */

/* Prints and frees a pipeline's line; `name` may be null. */
static void report(Pending *it, const char *name) {
  char *line = NULL;
  Label label;
  if (name) snprintf(label, sizeof label, "%s", name);
  else snprintf(label, sizeof label, "module:%.240s", it->module);
  if (asprintf(&line, "%u\t%s\t%s\n", it->number, label, it->statistics) >= 0) output("", line), free(line);
  if (it->representations && asprintf(&line, "#### %u %s\n%s\n", it->number, label, it->representations) >= 0) {
    output(".ir", line);
    free(line);
  }
  free(it->statistics);
  free(it->representations);
  free(it);
}

/* Reports the pending pipelines of `device` (null: of all) with handle `handle` (null: all). */
static void reportPending(const Device *device, VkPipeline handle, const char *name) {
  pthread_mutex_lock(&mutex);
  for (Pending **link = &pending; *link;) {
    Pending *it = *link;
    if ((device && it->device != device) || (handle && it->handle != handle)) {
      link = &it->next;
      continue;
    }
    *link = it->next;
    report(it, name);
  }
  pthread_mutex_unlock(&mutex);
}

__attribute__((destructor)) static void reportAll(void) { reportPending(NULL, VK_NULL_HANDLE, NULL); }

static void printStatistics(FILE *out, const Device *device, VkPipeline pipeline, uint32_t executable) {
  const VkPipelineExecutableInfoKHR info = {
      .sType = VK_STRUCTURE_TYPE_PIPELINE_EXECUTABLE_INFO_KHR, .pipeline = pipeline, .executableIndex = executable};
  uint32_t count = 0;
  if (device->getStatistics(device->handle, &info, &count, NULL) != VK_SUCCESS || count == 0) {
    fprintf(out, "\tno statistics");
    return;
  }
  VkPipelineExecutableStatisticKHR *list = calloc(count, sizeof *list);
  if (!list) return;
  for (uint32_t i = 0; i < count; i++) list[i].sType = VK_STRUCTURE_TYPE_PIPELINE_EXECUTABLE_STATISTIC_KHR;
  if (device->getStatistics(device->handle, &info, &count, list) < 0) count = 0;
  for (uint32_t i = 0; i < count; i++) {
    const VkPipelineExecutableStatisticValueKHR value = list[i].value;
    fprintf(out, "\t%s=", list[i].name);
    switch (list[i].format) {
      case VK_PIPELINE_EXECUTABLE_STATISTIC_FORMAT_BOOL32_KHR: fprintf(out, "%s", value.b32 ? "true" : "false"); break;
      case VK_PIPELINE_EXECUTABLE_STATISTIC_FORMAT_INT64_KHR: fprintf(out, "%" PRId64, value.i64); break;
      case VK_PIPELINE_EXECUTABLE_STATISTIC_FORMAT_UINT64_KHR: fprintf(out, "%" PRIu64, value.u64); break;
      case VK_PIPELINE_EXECUTABLE_STATISTIC_FORMAT_FLOAT64_KHR: fprintf(out, "%g", value.f64); break;
      default: fprintf(out, "0x%" PRIx64, value.u64);
    }
  }
  free(list);
}

static void printRepresentations(FILE *out, const Device *device, VkPipeline pipeline, uint32_t executable) {
  const VkPipelineExecutableInfoKHR info = {
      .sType = VK_STRUCTURE_TYPE_PIPELINE_EXECUTABLE_INFO_KHR, .pipeline = pipeline, .executableIndex = executable};
  uint32_t count = 0;
  if (device->getRepresentations(device->handle, &info, &count, NULL) != VK_SUCCESS || count == 0) {
    fprintf(out, "## executable %u: no internal representations\n", executable);
    return;
  }
  VkPipelineExecutableInternalRepresentationKHR *list = calloc(count, sizeof *list);
  if (!list) return;
  for (uint32_t i = 0; i < count; i++) list[i].sType = VK_STRUCTURE_TYPE_PIPELINE_EXECUTABLE_INTERNAL_REPRESENTATION_KHR;
  if (device->getRepresentations(device->handle, &info, &count, list) < 0) count = 0; /* sizes */
  for (uint32_t i = 0; i < count; i++) list[i].pData = calloc(1, list[i].dataSize + 1);
  if (count && device->getRepresentations(device->handle, &info, &count, list) < 0) count = 0;
  for (uint32_t i = 0; i < count; i++) {
    fprintf(out, "## executable %u: %s (%s), %zu bytes\n", executable, list[i].name, list[i].description, list[i].dataSize);
    if (list[i].isText && list[i].pData) fprintf(out, "%s\n", (const char *)list[i].pData);
  }
  for (uint32_t i = 0; i < count; i++) free(list[i].pData);
  free(list);
}

/* Asks the driver about a new pipeline and keeps the answer until the pipeline is named. */
static void keep(Device *device, VkPipeline pipeline, const Module *module) {
  Pending *it = calloc(1, sizeof *it);
  if (!it) return;
  size_t size = 0;
  FILE *out = open_memstream(&it->statistics, &size);
  if (!out) {
    free(it);
    return;
  }
  const VkPipelineInfoKHR info = {.sType = VK_STRUCTURE_TYPE_PIPELINE_INFO_KHR, .pipeline = pipeline};
  uint32_t count = 0;
  VkPipelineExecutablePropertiesKHR *list = NULL;
  if (device->getExecutables(device->handle, &info, &count, NULL) == VK_SUCCESS && count > 0) {
    list = calloc(count, sizeof *list);
    for (uint32_t i = 0; list && i < count; i++) list[i].sType = VK_STRUCTURE_TYPE_PIPELINE_EXECUTABLE_PROPERTIES_KHR;
    if (!list || device->getExecutables(device->handle, &info, &count, list) < 0) count = 0;
  } else {
    count = 0;
  }
  fprintf(out, "spirv=%016" PRIx64, module->hash);
  if (count == 0) fprintf(out, "\tno statistics");
  for (uint32_t i = 0; i < count; i++) {
    fprintf(out, "\texecutable=%s\tsubgroup size=%u", list[i].name, list[i].subgroupSize);
    printStatistics(out, device, pipeline, i);
  }
  fclose(out);
  if (wantsRepresentations() && (out = open_memstream(&it->representations, &size))) {
    for (uint32_t i = 0; i < count; i++) printRepresentations(out, device, pipeline, i);
    fclose(out);
  }
  free(list);
  it->device = device;
  it->handle = pipeline;
  memcpy(it->module, module->name, sizeof it->module);
  pthread_mutex_lock(&mutex);
  it->number = ++pipelineCount;
  Pending **last = &pending;
  while (*last) last = &(*last)->next;
  *last = it;
  pthread_mutex_unlock(&mutex);
}

/* ---- device functions ---- */

static VKAPI_ATTR VkResult VKAPI_CALL createShaderModule(VkDevice handle, const VkShaderModuleCreateInfo *info,
                                                         const VkAllocationCallbacks *allocator, VkShaderModule *module) {
  Device *device = deviceOf(handle);
  const VkResult result = device->createShaderModule(handle, info, allocator, module);
  Module *it = result == VK_SUCCESS && device->statistics ? malloc(sizeof *it) : NULL;
  if (it) {
    *it = (Module){.device = device, .handle = *module, .hash = hashOf(info)};
    pthread_mutex_lock(&mutex);
    it->next = modules;
    modules = it;
    pthread_mutex_unlock(&mutex);
  }
  return result;
}

/* Forgets a module, or all of the device's where `module` is null. */
static void forgetModules(const Device *device, VkShaderModule module) {
  pthread_mutex_lock(&mutex);
  for (Module **link = &modules; *link;) {
    Module *it = *link;
    if (it->device == device && (!module || it->handle == module)) {
      *link = it->next;
      free(it);
    } else {
      link = &it->next;
    }
  }
  pthread_mutex_unlock(&mutex);
}

static VKAPI_ATTR void VKAPI_CALL destroyShaderModule(VkDevice handle, VkShaderModule module,
                                                      const VkAllocationCallbacks *allocator) {
  Device *device = deviceOf(handle);
  if (module) forgetModules(device, module);
  device->destroyShaderModule(handle, module, allocator);
}

/* Copies what is known of a stage's module, which may also stand in the stage's chain (VK_KHR_maintenance5). */
static Module moduleOf(const Device *device, const VkPipelineShaderStageCreateInfo *stage) {
  Module module = {0};
  const VkShaderModuleCreateInfo *chained = findInChain(stage->pNext, VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO);
  if (!stage->module && chained) module.hash = hashOf(chained);
  pthread_mutex_lock(&mutex);
  for (const Module *it = modules; it; it = it->next) {
    if (it->device != device || it->handle != stage->module) continue;
    module = *it;
    break;
  }
  pthread_mutex_unlock(&mutex);
  return module;
}

static VKAPI_ATTR VkResult VKAPI_CALL createComputePipelines(VkDevice handle, VkPipelineCache cache, uint32_t count,
                                                             const VkComputePipelineCreateInfo *infos,
                                                             const VkAllocationCallbacks *allocator, VkPipeline *pipelines) {
  Device *device = deviceOf(handle);
  VkComputePipelineCreateInfo *copies = device->statistics ? calloc(count, sizeof *copies) : NULL;
  uint64_t *flags2 = copies ? calloc(count, sizeof *flags2) : NULL;
  if (!flags2) {
    free(copies);
    return device->createComputePipelines(handle, cache, count, infos, allocator, pipelines);
  }
  const VkPipelineCreateFlags capture =
      VK_PIPELINE_CREATE_CAPTURE_STATISTICS_BIT_KHR |
      (wantsRepresentations() ? VK_PIPELINE_CREATE_CAPTURE_INTERNAL_REPRESENTATIONS_BIT_KHR : 0u);
  for (uint32_t i = 0; i < count; i++) {
    copies[i] = infos[i];
    copies[i].flags |= capture;
    /* The chain stays the caller's: this one word of it is changed during the call. */
    PipelineCreateFlags2 *extended = (PipelineCreateFlags2 *)findInChain(infos[i].pNext, PIPELINE_CREATE_FLAGS_2);
    if (!extended) continue;
    flags2[i] = extended->flags;
    extended->flags |= capture;
  }
  const VkResult result = device->createComputePipelines(handle, cache, count, copies, allocator, pipelines);
  for (uint32_t i = count; i-- > 0;) { /* backwards, since chains may be shared */
    PipelineCreateFlags2 *extended = (PipelineCreateFlags2 *)findInChain(infos[i].pNext, PIPELINE_CREATE_FLAGS_2);
    if (extended) extended->flags = flags2[i];
  }
  for (uint32_t i = 0; i < count; i++) {
    if (result < 0 || !pipelines[i]) continue;
    const Module module = moduleOf(device, &infos[i].stage);
    keep(device, pipelines[i], &module);
  }
  free(flags2);
  free(copies);
  return result;
}

static VKAPI_ATTR void VKAPI_CALL destroyPipeline(VkDevice handle, VkPipeline pipeline,
                                                   const VkAllocationCallbacks *allocator) {
  Device *device = deviceOf(handle);
  if (pipeline) reportPending(device, pipeline, NULL);
  device->destroyPipeline(handle, pipeline, allocator);
}

static VKAPI_ATTR VkResult VKAPI_CALL setObjectName(VkDevice handle, const VkDebugUtilsObjectNameInfoEXT *info) {
  Device *device = deviceOf(handle);
  if (info->objectType == VK_OBJECT_TYPE_PIPELINE && info->objectHandle && info->pObjectName) {
    reportPending(device, (VkPipeline)info->objectHandle, labelIn(info->pObjectName, "Dawn_ComputePipeline_"));
  } else if (info->objectType == VK_OBJECT_TYPE_SHADER_MODULE && info->pObjectName) {
    pthread_mutex_lock(&mutex);
    for (Module *it = modules; it; it = it->next) {
      if (it->device != device || it->handle != (VkShaderModule)info->objectHandle) continue;
      snprintf(it->name, sizeof it->name, "%s", labelIn(info->pObjectName, "Dawn_ShaderModule_"));
    }
    pthread_mutex_unlock(&mutex);
  }
  return device->setObjectName ? device->setObjectName(handle, info) : VK_SUCCESS;
}

static VKAPI_ATTR void VKAPI_CALL destroyDevice(VkDevice handle, const VkAllocationCallbacks *allocator) {
  if (!handle) return;
  Device *device = deviceOf(handle);
  reportPending(device, VK_NULL_HANDLE, NULL);
  forgetModules(device, VK_NULL_HANDLE);
  pthread_mutex_lock(&mutex);
  Device **link = &devices;
  while (*link != device) link = &(*link)->next;
  *link = device->next;
  pthread_mutex_unlock(&mutex);
  device->destroyDevice(handle, allocator);
  free(device);
}

/* ---- instance functions ---- */

/* Whether the driver can tell statistics; says so in the output where it cannot. */
static bool hasStatistics(const Instance *instance, VkPhysicalDevice physical) {
#define INSTANCE_FUNCTION(name) ((PFN_##name)instance->getProcAddr(instance->handle, #name))
  const PFN_vkEnumerateDeviceExtensionProperties enumerate = INSTANCE_FUNCTION(vkEnumerateDeviceExtensionProperties);
  PFN_vkGetPhysicalDeviceFeatures2 getFeatures = INSTANCE_FUNCTION(vkGetPhysicalDeviceFeatures2);
  if (!getFeatures) getFeatures = INSTANCE_FUNCTION(vkGetPhysicalDeviceFeatures2KHR);
  bool found = false;
  uint32_t count = 0;
  VkExtensionProperties *list = NULL;
  if (enumerate(physical, NULL, &count, NULL) == VK_SUCCESS && (list = calloc(count + 1, sizeof *list))) {
    if (enumerate(physical, NULL, &count, list) < 0) count = 0;
    for (uint32_t i = 0; i < count; i++) {
      found |= !strcmp(list[i].extensionName, VK_KHR_PIPELINE_EXECUTABLE_PROPERTIES_EXTENSION_NAME);
    }
    free(list);
  }
  VkPhysicalDevicePipelineExecutablePropertiesFeaturesKHR feature = {
      .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PIPELINE_EXECUTABLE_PROPERTIES_FEATURES_KHR};
  VkPhysicalDeviceFeatures2 features = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2, .pNext = &feature};
  if (found && getFeatures) getFeatures(physical, &features);
  VkPhysicalDeviceProperties properties;
  INSTANCE_FUNCTION(vkGetPhysicalDeviceProperties)(physical, &properties);
  char line[VK_MAX_PHYSICAL_DEVICE_NAME_SIZE + 128];
  snprintf(line, sizeof line, "# %s: %s\n", properties.deviceName,
           feature.pipelineExecutableInfo ? "statistics of compute pipelines"
                                          : "no statistics, the driver lacks VK_KHR_pipeline_executable_properties");
  output("", line);
  return feature.pipelineExecutableInfo;
}

static VKAPI_ATTR VkResult VKAPI_CALL createDevice(VkPhysicalDevice physical, const VkDeviceCreateInfo *info,
                                                   const VkAllocationCallbacks *allocator, VkDevice *handle) {
  VkLayerDeviceCreateInfo *link = (VkLayerDeviceCreateInfo *)info->pNext;
  while (link && !(link->sType == VK_STRUCTURE_TYPE_LOADER_DEVICE_CREATE_INFO && link->function == VK_LAYER_LINK_INFO)) {
    link = (VkLayerDeviceCreateInfo *)link->pNext;
  }
  const Instance *instance = instanceOf(physical);
  if (!link || !instance) return VK_ERROR_INITIALIZATION_FAILED;
  const PFN_vkGetInstanceProcAddr getInstanceProcAddr = link->u.pLayerInfo->pfnNextGetInstanceProcAddr;
  const PFN_vkGetDeviceProcAddr getDeviceProcAddr = link->u.pLayerInfo->pfnNextGetDeviceProcAddr;
  const PFN_vkCreateDevice create = (PFN_vkCreateDevice)getInstanceProcAddr(instance->handle, "vkCreateDevice");
  Device *device = calloc(1, sizeof *device);
  const char **names = calloc(info->enabledExtensionCount + 1u, sizeof *names);
  if (!create || !device || !names) {
    free(device);
    free(names);
    return VK_ERROR_INITIALIZATION_FAILED;
  }
  link->u.pLayerInfo = link->u.pLayerInfo->pNext;

  VkDeviceCreateInfo copy = *info;
  VkPhysicalDevicePipelineExecutablePropertiesFeaturesKHR feature = {
      .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PIPELINE_EXECUTABLE_PROPERTIES_FEATURES_KHR,
      .pNext = (void *)info->pNext,
      .pipelineExecutableInfo = VK_TRUE};
  VkPhysicalDevicePipelineExecutablePropertiesFeaturesKHR *own =
      (VkPhysicalDevicePipelineExecutablePropertiesFeaturesKHR *)findInChain(info->pNext, feature.sType);
  const VkBool32 ownValue = own ? own->pipelineExecutableInfo : VK_FALSE;
  device->statistics = hasStatistics(instance, physical);
  if (device->statistics) {
    bool enabled = false;
    for (uint32_t i = 0; i < info->enabledExtensionCount; i++) {
      names[i] = info->ppEnabledExtensionNames[i];
      enabled |= !strcmp(names[i], VK_KHR_PIPELINE_EXECUTABLE_PROPERTIES_EXTENSION_NAME);
    }
    if (!enabled) names[copy.enabledExtensionCount++] = VK_KHR_PIPELINE_EXECUTABLE_PROPERTIES_EXTENSION_NAME;
    copy.ppEnabledExtensionNames = names;
    if (own) own->pipelineExecutableInfo = VK_TRUE;
    else copy.pNext = &feature;
  }
  const VkResult result = create(physical, &copy, allocator, handle);
  if (own) own->pipelineExecutableInfo = ownValue;
  free(names);
  if (result != VK_SUCCESS) {
    free(device);
    return result;
  }
  device->key = keyOf(*handle);
  device->handle = *handle;
  device->getProcAddr = getDeviceProcAddr;
#define DEVICE_FUNCTION(name) ((PFN_##name)getDeviceProcAddr(*handle, #name))
  device->destroyDevice = DEVICE_FUNCTION(vkDestroyDevice);
  device->createShaderModule = DEVICE_FUNCTION(vkCreateShaderModule);
  device->destroyShaderModule = DEVICE_FUNCTION(vkDestroyShaderModule);
  device->createComputePipelines = DEVICE_FUNCTION(vkCreateComputePipelines);
  device->destroyPipeline = DEVICE_FUNCTION(vkDestroyPipeline);
  device->setObjectName = DEVICE_FUNCTION(vkSetDebugUtilsObjectNameEXT);
  device->getExecutables = DEVICE_FUNCTION(vkGetPipelineExecutablePropertiesKHR);
  device->getStatistics = DEVICE_FUNCTION(vkGetPipelineExecutableStatisticsKHR);
  device->getRepresentations = DEVICE_FUNCTION(vkGetPipelineExecutableInternalRepresentationsKHR);
  device->statistics &= device->getExecutables && device->getStatistics && device->getRepresentations;
  pthread_mutex_lock(&mutex);
  device->next = devices;
  devices = device;
  pthread_mutex_unlock(&mutex);
  return VK_SUCCESS;
}

static VKAPI_ATTR VkResult VKAPI_CALL createInstance(const VkInstanceCreateInfo *info, const VkAllocationCallbacks *allocator,
                                                     VkInstance *handle) {
  VkLayerInstanceCreateInfo *link = (VkLayerInstanceCreateInfo *)info->pNext;
  while (link && !(link->sType == VK_STRUCTURE_TYPE_LOADER_INSTANCE_CREATE_INFO && link->function == VK_LAYER_LINK_INFO)) {
    link = (VkLayerInstanceCreateInfo *)link->pNext;
  }
  if (!link) return VK_ERROR_INITIALIZATION_FAILED;
  const PFN_vkGetInstanceProcAddr getProcAddr = link->u.pLayerInfo->pfnNextGetInstanceProcAddr;
  const PFN_vkCreateInstance create = (PFN_vkCreateInstance)getProcAddr(VK_NULL_HANDLE, "vkCreateInstance");
  Instance *instance = calloc(1, sizeof *instance);
  if (!create || !instance) {
    free(instance);
    return VK_ERROR_INITIALIZATION_FAILED;
  }
  link->u.pLayerInfo = link->u.pLayerInfo->pNext;
  const VkResult result = create(info, allocator, handle);
  if (result != VK_SUCCESS) {
    free(instance);
    return result;
  }
  instance->key = keyOf(*handle);
  instance->handle = *handle;
  instance->getProcAddr = getProcAddr;
  instance->destroyInstance = (PFN_vkDestroyInstance)getProcAddr(*handle, "vkDestroyInstance");
  pthread_mutex_lock(&mutex);
  instance->next = instances;
  instances = instance;
  pthread_mutex_unlock(&mutex);
  return VK_SUCCESS;
}

static VKAPI_ATTR void VKAPI_CALL destroyInstance(VkInstance handle, const VkAllocationCallbacks *allocator) {
  if (!handle) return;
  Instance *instance = instanceOf(handle);
  pthread_mutex_lock(&mutex);
  Instance **link = &instances;
  while (*link != instance) link = &(*link)->next;
  *link = instance->next;
  pthread_mutex_unlock(&mutex);
  instance->destroyInstance(handle, allocator);
  free(instance);
}

/* ---- entry points ---- */

static PFN_vkVoidFunction VKAPI_CALL getDeviceProcAddr(VkDevice handle, const char *name);
static PFN_vkVoidFunction VKAPI_CALL getInstanceProcAddr(VkInstance handle, const char *name);

typedef struct {
  const char *name;
  PFN_vkVoidFunction function;
} Hook;

#define HOOK(function) (PFN_vkVoidFunction)(function)
static const Hook deviceHooks[] = {
    {"vkGetDeviceProcAddr", HOOK(getDeviceProcAddr)},
    {"vkDestroyDevice", HOOK(destroyDevice)},
    {"vkCreateShaderModule", HOOK(createShaderModule)},
    {"vkDestroyShaderModule", HOOK(destroyShaderModule)},
    {"vkCreateComputePipelines", HOOK(createComputePipelines)},
    {"vkDestroyPipeline", HOOK(destroyPipeline)},
    {"vkSetDebugUtilsObjectNameEXT", HOOK(setObjectName)},
};
static const Hook instanceHooks[] = {
    {"vkGetInstanceProcAddr", HOOK(getInstanceProcAddr)},
    {"vkCreateInstance", HOOK(createInstance)},
    {"vkDestroyInstance", HOOK(destroyInstance)},
    {"vkCreateDevice", HOOK(createDevice)},
};

static PFN_vkVoidFunction findHook(const Hook *hooks, size_t count, const char *name) {
  for (size_t i = 0; i < count; i++) {
    if (!strcmp(hooks[i].name, name)) return hooks[i].function;
  }
  return NULL;
}
#define FIND(hooks, name) findHook(hooks, sizeof hooks / sizeof *hooks, name)

static PFN_vkVoidFunction VKAPI_CALL getDeviceProcAddr(VkDevice handle, const char *name) {
  const PFN_vkVoidFunction hook = FIND(deviceHooks, name);
  if (hook) return hook;
  const Device *device = deviceOf(handle);
  return device ? device->getProcAddr(handle, name) : NULL;
}

static PFN_vkVoidFunction VKAPI_CALL getInstanceProcAddr(VkInstance handle, const char *name) {
  PFN_vkVoidFunction hook = FIND(instanceHooks, name);
  if (!hook) hook = FIND(deviceHooks, name);
  if (hook || !handle) return hook;
  const Instance *instance = instanceOf(handle);
  return instance ? instance->getProcAddr(handle, name) : NULL;
}

VK_LAYER_EXPORT VKAPI_ATTR VkResult VKAPI_CALL vkNegotiateLoaderLayerInterfaceVersion(VkNegotiateLayerInterface *version) {
  if (version->sType != LAYER_NEGOTIATE_INTERFACE_STRUCT || version->loaderLayerInterfaceVersion < 2) {
    return VK_ERROR_INITIALIZATION_FAILED;
  }
  version->loaderLayerInterfaceVersion = 2;
  version->pfnGetInstanceProcAddr = getInstanceProcAddr;
  version->pfnGetDeviceProcAddr = getDeviceProcAddr;
  version->pfnGetPhysicalDeviceProcAddr = NULL;
  return VK_SUCCESS;
}
