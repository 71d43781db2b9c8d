/* test_runtime.c - what C host code sees of the harness: results of kernels, streams, captures, errors, missing devices. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <cublasLt.h>
#include <cuda_runtime_api.h>

cudaError_t sum_of_block(const void *x, float *y, int n, cudaStream_t s);
cudaError_t copy_in_pieces(const float4 *x, float4 *y, cudaStream_t s);
cudaError_t try_arithmetic(int *wrong, cudaStream_t s);
#define OK(call) assert_int_equal(call, cudaSuccess)

static cudaStream_t s, t;
static int open_streams(void **state)
{
    (void)state;
    return cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking) || cudaStreamCreateWithPriority(&t, cudaStreamNonBlocking, -1);
}
static int close_streams(void **state)
{
    (void)state;
    return cudaStreamDestroy(s) || cudaStreamDestroy(t);
}
static void the_language_of_kernels_is_understood(void **state)
{
    (void)state;
    uint16_t ones[128];
    float sums[3], in[256], out[128];
    int wrong[4];
    void *x, *y;
    for (int i = 0; i < 128; i++) ones[i] = 0x3f80;
    for (int i = 0; i < 256; i++) in[i] = (float)i;
    OK(cudaMalloc(&x, sizeof in));
    OK(cudaMalloc(&y, sizeof in));
    OK(cudaMemcpy(x, ones, sizeof ones, cudaMemcpyHostToDevice));
    OK(sum_of_block(x, y, 100, s));
    OK(cudaMemcpyAsync(sums, y, sizeof sums, cudaMemcpyDeviceToHost, s));            /* pageable: waits */
    for (int i = 0; i < 3; i++) assert_true(sums[i] == 200);
    OK(cudaMemcpyAsync(x, in, sizeof in, cudaMemcpyHostToDevice, s));
    OK(copy_in_pieces(x, y, s));
    OK(cudaMemcpyAsync(out, y, sizeof out, cudaMemcpyDeviceToHost, s));
    for (int i = 0; i < 128; i++) assert_true(out[i] == (float)(4 * (31 - i / 4) + i % 4 + (i % 4 < 2 ? 0 : 128)));
    OK(cudaMemsetAsync(y, 0, sizeof wrong, s));
    OK(try_arithmetic(y, s));
    OK(cudaMemcpyAsync(wrong, y, sizeof wrong, cudaMemcpyDeviceToHost, s));
    assert_int_equal(wrong[0], 32);
    assert_int_equal(wrong[1], 0);
    assert_int_equal(wrong[3], 32);
    OK(cudaFree(x));
    OK(cudaFree(y));
}
static void a_captured_fork_and_join_replays(void **state)
{
    (void)state;
    cudaEvent_t fork, join, begin, end;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    enum cudaStreamCaptureStatus status;
    unsigned char *x, *y, *h;
    size_t nodes;
    float ms;
    OK(cudaEventCreateWithFlags(&fork, cudaEventDisableTiming));
    OK(cudaEventCreateWithFlags(&join, cudaEventDisableTiming));
    OK(cudaEventCreate(&begin));
    OK(cudaEventCreate(&end));
    OK(cudaMalloc((void **)&x, 64));
    OK(cudaMalloc((void **)&y, 64));
    OK(cudaMallocHost((void **)&h, 64));
    memset(h, 7, 64);
    OK(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal));
    OK(cudaEventRecordWithFlags(begin, s, cudaEventRecordExternal));
    OK(cudaMemcpyAsync(x, h, 64, cudaMemcpyHostToDevice, s));
    OK(cudaEventRecord(fork, s));
    OK(cudaStreamWaitEvent(t, fork, 0));
    OK(cudaStreamIsCapturing(t, &status));
    assert_int_equal(status, cudaStreamCaptureStatusActive);
    OK(cudaMemcpyAsync(y, x, 64, cudaMemcpyDeviceToDevice, t));
    OK(cudaEventRecord(join, t));
    OK(cudaStreamWaitEvent(s, join, 0));
    OK(cudaMemsetAsync(x, 1, 64, s));
    OK(cudaEventRecordWithFlags(end, s, cudaEventRecordExternal));
    assert_int_equal(cudaEventQuery(fork), cudaErrorCapturedEvent);
    OK(cudaStreamEndCapture(s, &graph));
    OK(cudaGraphGetNodes(graph, NULL, &nodes));
    assert_int_equal(nodes, 5);
    OK(cudaGraphInstantiate(&exec, graph, 0));
    OK(cudaGraphDestroy(graph));
    for (int i = 0; i < 3; i++) {
        memset(h, 10 + i, 64);                                    /* read at the replay, not at the capture */
        OK(cudaGraphLaunch(exec, s));
        OK(cudaStreamSynchronize(s));
        OK(cudaMemcpy(h, y, 64, cudaMemcpyDeviceToHost));
        assert_int_equal(h[63], 10 + i);
    }
    OK(cudaMemcpy(h, x, 64, cudaMemcpyDeviceToHost));
    assert_int_equal(h[0], 1);
    OK(cudaEventElapsedTime(&ms, begin, end));
    assert_true(ms >= 0);
    OK(cudaGraphExecDestroy(exec));
    OK(cudaEventDestroy(fork));
    OK(cudaEventDestroy(join));
    OK(cudaEventDestroy(begin));
    OK(cudaEventDestroy(end));
    OK(cudaFree(x));
    OK(cudaFree(y));
    OK(cudaFreeHost(h));
}
static cudaError_t lost_by(cudaError_t (*what)(void *), void *arg, enum cudaStreamCaptureMode mode)
{
    cudaGraph_t graph;
    OK(cudaStreamBeginCapture(s, mode));
    const cudaError_t e = what(arg), end = cudaStreamEndCapture(s, &graph);
    if (e == cudaSuccess) {
        OK(end);
        OK(cudaGraphDestroy(graph));
    } else {
        assert_int_equal(end, cudaErrorStreamCaptureInvalidated);
        assert_null(graph);
    }
    cudaGetLastError();
    return e;
}
static cudaError_t allocates(void *p) { return cudaMalloc(p, 8); }
static cudaError_t waits(void *p) { (void)p; return cudaStreamSynchronize(s); }
static cudaError_t waits_for_all(void *p) { (void)p; return cudaDeviceSynchronize(); }
static cudaError_t asks(void *p) { (void)p; return cudaStreamQuery(s); }
static cudaError_t depends_on_outside(void *p) { return cudaStreamWaitEvent(s, p, 0); }
static void a_capture_is_lost_as_in_cuda(void **state)
{
    (void)state;
    void *p = NULL;
    cudaEvent_t e;
    OK(cudaEventCreate(&e));
    OK(cudaEventRecord(e, t));
    assert_int_equal(lost_by(allocates, &p, cudaStreamCaptureModeThreadLocal), cudaErrorStreamCaptureUnsupported);
    assert_int_equal(lost_by(allocates, &p, cudaStreamCaptureModeRelaxed), cudaSuccess);
    assert_int_equal(lost_by(waits, NULL, cudaStreamCaptureModeRelaxed), cudaErrorStreamCaptureUnsupported);
    assert_int_equal(lost_by(waits_for_all, NULL, cudaStreamCaptureModeRelaxed), cudaErrorStreamCaptureUnsupported);
    assert_int_equal(lost_by(asks, NULL, cudaStreamCaptureModeRelaxed), cudaErrorStreamCaptureUnsupported);
    assert_int_equal(lost_by(depends_on_outside, e, cudaStreamCaptureModeRelaxed), cudaErrorStreamCaptureIsolation);
    OK(cudaEventDestroy(e));
    OK(cudaFree(p));
}
static void memory_runs_out_where_it_is_said_to(void **state)
{
    (void)state;
    size_t before, after, total;
    void *p, *q;
    OK(cudaMemGetInfo(&before, &total));
    OK(cudaMalloc(&p, 1 << 20));
    OK(cudaMemGetInfo(&after, &total));
    assert_int_equal(before - after, 1 << 20);
    assert_int_equal(cudaMalloc(&q, after + 1), cudaErrorMemoryAllocation);
    assert_null(q);
    assert_int_equal(cudaGetLastError(), cudaErrorMemoryAllocation);
    assert_int_equal(cudaGetLastError(), cudaSuccess);
    OK(cudaFree(p));
}
static void events_time_and_refuse(void **state)
{
    (void)state;
    cudaEvent_t a, b, untimed;
    float ms = -1;
    OK(cudaEventCreate(&a));
    OK(cudaEventCreate(&b));
    OK(cudaEventCreateWithFlags(&untimed, cudaEventDisableTiming));
    OK(cudaEventQuery(a));                                        /* never recorded: nothing to wait for */
    assert_int_equal(cudaEventElapsedTime(&ms, a, b), cudaErrorInvalidResourceHandle);
    OK(cudaEventRecord(a, s));
    OK(cudaEventRecord(b, s));
    OK(cudaEventRecord(untimed, s));
    while (cudaEventQuery(untimed) == cudaErrorNotReady) ;        /* asking is enough to get there */
    OK(cudaEventElapsedTime(&ms, a, b));
    assert_true(ms >= 0);
    assert_int_equal(cudaEventElapsedTime(&ms, a, untimed), cudaErrorInvalidResourceHandle);
    OK(cudaEventDestroy(a));
    OK(cudaEventDestroy(b));
    OK(cudaEventDestroy(untimed));
    cudaGetLastError();
}
static void without_a_device_every_call_says_so(int code)
{
    int n = 77, driver = 77;
    void *p;
    cublasLtHandle_t lt;
    assert_int_equal(cudaGetDeviceCount(&n), code);
    assert_int_equal(n, 77);
    assert_int_equal(cudaSetDevice(0), code);
    assert_int_equal(cudaMalloc(&p, 8), code);
    assert_int_equal(cudaStreamCreate(&s), code);
    assert_int_equal(cublasLtCreate(&lt), CUBLAS_STATUS_NOT_INITIALIZED);
    OK(cudaDriverGetVersion(&driver));
    assert_int_equal(driver, code == cudaErrorNoDevice ? 13000 : 0);
}
static void there_is_no_driver(void **state) { (void)state; without_a_device_every_call_says_so(cudaErrorInsufficientDriver); }
static void there_is_no_device(void **state) { (void)state; without_a_device_every_call_says_so(cudaErrorNoDevice); }

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_language_of_kernels_is_understood), cmocka_unit_test(a_captured_fork_and_join_replays),
        cmocka_unit_test(a_capture_is_lost_as_in_cuda),          cmocka_unit_test(memory_runs_out_where_it_is_said_to),
        cmocka_unit_test(events_time_and_refuse),
    };
    const struct CMUnitTest driver[] = {cmocka_unit_test(there_is_no_driver)}, device[] = {cmocka_unit_test(there_is_no_device)};
    if (argc > 1 && !strcmp(argv[1], "no-driver")) return cmocka_run_group_tests(driver, NULL, NULL);
    if (argc > 1 && !strcmp(argv[1], "no-device")) return cmocka_run_group_tests(device, NULL, NULL);
    return cmocka_run_group_tests(tests, open_streams, close_streams);
}
