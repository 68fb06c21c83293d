/* The instructions of one sample, counted by the emulator: with -icount shift=0 its clock moves a
 * nanosecond at each, and the board's timer counts at 25 MHz, so a tick is 40 instructions.
 */
#define main self_test
#include "test_model.c"
#undef main

#define TIMER ((volatile uint32_t *)0x40000000) /* CMSDK timer 0: control, value, reload */
#define PER_TICK 40u
#define THOUSAND 1000u

int main(void)
{
    const int failed = self_test();
    uint32_t ticks;
    TIMER[2] = 0xffffffffu;
    TIMER[1] = 0xffffffffu;
    TIMER[0] = 1;
    show(0);
    ticks = 0xffffffffu - TIMER[1];
    printf("thousand instructions of sample 0: %lu\n",
           (unsigned long)(ticks / (THOUSAND / PER_TICK)));
    return failed;
}
